"""Shell text into words, words into options, and QEMU's key=value lists."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.errors import IosimError
from iosim.qemu.command_line import read_command_line
from iosim.qemu.option_table import OPTIONS
from iosim.qemu.options import parse_key_values, size_in_bytes
from iosim.qemu.words import split_commands


def words(text: str) -> list[list[str]]:
    return [[word.text for word in command] for command in split_commands(text, "f")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kvm -m 1", [["kvm", "-m", "1"]]),
        ("kvm \\\n  -m \\\r\n 1\r\n", [["kvm", "-m", "1"]]),
        ("kvm 'a b' \"c d\" e\\ f", [["kvm", "a b", "c d", "e f"]]),
        ('kvm "a\\"b\\\\c\\d"', [["kvm", 'a"b\\c\\d']]),
        ("kvm ''", [["kvm", ""]]),
        ("kvm a#b # c", [["kvm", "a#b"]]),
        ("#!/bin/sh\n\nkvm", [["kvm"]]),
        ("kvm; ls && true | cat &", [["kvm"], ["ls"], ["true"], ["cat"]]),
        ("kvm >/dev/null 2>&1 -m 1 &>> log", [["kvm", "-m", "1"]]),
        ("kvm $(pwd)/a.img `id -u` $HOME", [["kvm", "$(pwd)/a.img", "`id -u`", "$HOME"]]),
        ("kv\\\nm", [["kvm"]]),
        ("\ufeffkvm", [["kvm"]]),
    ],
)
def test_words(text: str, expected: list[list[str]]) -> None:
    assert words(text) == expected


def test_lines_are_those_in_which_words_begin() -> None:
    (command,) = split_commands("# one\nkvm -m \\\n 1 'a\nb' c\\\nd e", "f")
    assert [(word.text, word.line) for word in command] == [
        ("kvm", 2), ("-m", 2), ("1", 3), ("a\nb", 3), ("cd", 4), ("e", 5)
    ]  # fmt: skip


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])), min_size=1))
def test_what_shlex_quotes_is_read_back(arguments: list[str]) -> None:
    assert words(shlex.join(arguments)) == [arguments]


@pytest.mark.parametrize(
    "text",
    [
        "sudo -u root kvm -m 1",
        "LANG=C A=b sudo -E env X=y /usr/bin/qemu-system-x86_64 -m 1",
        "exec -a vm taskset -c 2,3 numactl --cpunodebind=0 -m 0 ./qemu-kvm --m 1",
        "nohup nice -n -5 kvm -m 1 > log 2>&1 &",
        "$ kvm -m 1",
    ],
)
def test_what_stands_before_the_program(text: str) -> None:
    assert [(option.name, option.value) for option in read_command_line(text, "f").options] == [("m", "1")]


def test_one_dash_or_two_and_an_image() -> None:
    command = read_command_line("kvm --daemonize -daemonize disk.img --m 1", "f")
    assert [(o.name, o.value, o.positional) for o in command.options] == [
        ("daemonize", "", False), ("daemonize", "", False), ("hda", "disk.img", True), ("m", "1", False)
    ]  # fmt: skip


def test_other_commands_are_passed_over_with_a_note() -> None:
    command = read_command_line("set -e\nmodprobe vhost_net\nkvm\n", "f")
    assert command.line == 3
    assert [note.split(" is passed")[0] for note in command.notes] == ["f:1: 'set'", "f:2: 'modprobe'"]


@pytest.mark.parametrize(
    "name", ["m", "netdev", "device", "drive", "vnc", "cpu", "M", "qmp", "gdb", "boot", "balloon"]
)
def test_options_with_an_argument(name: str) -> None:
    assert OPTIONS[name]


@pytest.mark.parametrize(
    "name", ["usb", "enable-kvm", "daemonize", "nographic", "snapshot", "no-reboot", "S", "s"]
)
def test_options_without_an_argument(name: str) -> None:
    assert not OPTIONS[name]


@pytest.mark.parametrize(
    ("text", "head", "values"),
    [
        ("tap,id=a,vhost=on", "tap", {"id": "a", "vhost": "on"}),
        ("type=tap,id=a", "tap", {"id": "a"}),
        ("tap,vhost", "tap", {"vhost": "on"}),
        ("tap,script=a,,b=c", "tap", {"script": "a,b=c"}),
        ("tap,script=", "tap", {"script": ""}),
        ("tap,id=a,id=b,", "tap", {"id": "b"}),
        ("a,,b", "a,b", {}),
        ("", "", {}),
        ('{"type": "tap", "id": "a", "vhost": true, "queues": 2, "addr": {"type": "inet"}}',
         "tap", {"id": "a", "vhost": "on", "queues": "2", "addr.type": "inet"}),
    ],
)  # fmt: skip
def test_key_values(text: str, head: str, values: dict[str, str]) -> None:
    read = parse_key_values(text, "-netdev", "f:1", implied="type")
    assert (read.head, read.values) == (head, values)


_KEYS = st.from_regex(r"[a-z][a-z_-]{0,8}", fullmatch=True).filter(lambda key: key != "type")


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.dictionaries(_KEYS, st.text(min_size=0, max_size=12)))
def test_values_with_commas_doubled_are_read_back(values: dict[str, str]) -> None:
    text = ",".join(["tap", *(f"{key}={value.replace(',', ',,')}" for key, value in values.items())])
    # A trailing empty value followed by nothing is the one ambiguity: 'a=' stays, so there is none.
    assert parse_key_values(text, "-netdev", "f:1", implied="type").values == values


@pytest.mark.parametrize(
    ("value", "expected"),
    [("on", True), ("yes", True), ("true", True), ("off", False), ("no", False), ("false", False)],
)
def test_booleans(value: str, expected: bool) -> None:
    assert parse_key_values(f"vhost={value}", "-x", "f:1").boolean("vhost") is expected


def test_a_boolean_is_neither_upper_case_nor_a_number() -> None:
    for value in ("ON", "1", "", "maybe"):
        with pytest.raises(IosimError, match="expects 'on' or 'off'"):
            parse_key_values(f"vhost={value}", "-x", "f:1").boolean("vhost")


@pytest.mark.parametrize(
    ("text", "suffix", "expected"),
    [("1", "m", 1 << 20), ("1", "b", 1), ("2G", "m", 2 << 30), ("0.5k", "m", 512), ("0x10", "b", 16),
     ("-1", "m", None), ("1x", "m", None), ("", "m", None), ("١", "m", None), ("1" * 30, "m", None)],
)  # fmt: skip
def test_sizes(text: str, suffix: str, expected: int | None) -> None:
    assert size_in_bytes(text, suffix) == expected
