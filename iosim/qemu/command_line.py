"""Which of a file's commands is QEMU, and which options it has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from iosim.errors import IosimError, unknown
from iosim.qemu.name_list import name_list
from iosim.qemu.option_table import OPTIONS
from iosim.qemu.words import Word, split_commands

#: Commands that run another one: the options of theirs that take a word, and how many words come first.
_PREFIXES: dict[str, tuple[str, int]] = {
    "$": ("", 0),  # a prompt, copied with the command
    "chrt": ("-T -P -D", 1),
    "command": ("", 0),
    "env": ("-u -C -S", 0),
    "exec": ("-a", 0),
    "ionice": ("-c -n", 0),
    "nice": ("-n", 0),
    "nohup": ("", 0),
    "numactl": ("-N -m -C -i -p -w", 0),
    "setsid": ("", 0),
    "stdbuf": ("-i -o -e", 0),
    "sudo": ("-u -g -p -C -h -U -R -D -T -r -t", 0),
    "taskset": ("", 1),
    "time": ("", 0),
    "timeout": ("-k -s", 1),
}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_SHELL_WORDS = frozenset(
    name_list("if then else elif fi for while until do done case esac function select { }")
)
_ARCHITECTURE = re.compile(r"qemu-system-(\w+)$")


@dataclass(frozen=True)
class Option:
    """One option of QEMU's: its name without dashes, its argument, and where it stands.

    A word without a dash is QEMU's disk image; it becomes the option ``hda``, as QEMU treats it, with
    ``positional`` set.
    """

    name: str
    value: str
    where: str
    line: int
    positional: bool = False

    def __str__(self) -> str:
        return self.value if self.positional else f"-{self.name} {self.value}".rstrip()


@dataclass(frozen=True)
class CommandLine:
    """A QEMU command as words: the program's base name, its options in order, and what was passed over."""

    source: str
    program: str
    line: int
    options: tuple[Option, ...]
    notes: tuple[str, ...]


def read_command_line(text: str, source: str) -> CommandLine:
    """Find the one QEMU command in ``text`` and read its options (see `read_command_lines`).

    Raises:
        IosimError: There are several; and as there.
    """
    first, *others = read_command_lines(text, source)
    if others:
        raise IosimError(
            f"a second QEMU command (the first is in line {first.line}); one file holds one machine",
            f"{source}:{others[0].line}",
        )
    return first


def read_command_lines(text: str, source: str) -> list[CommandLine]:
    """Find the QEMU commands in ``text`` and read their options; the first has the notes.

    Other commands (``modprobe vhost_net``, ``set -e``) are passed over with a note.

    Args:
        text: A command as one types it, or the shell script that holds it.
        source: The name of the file, for errors.

    Raises:
        IosimError: There is no QEMU command, an option that QEMU does not have, an option without its argument, or
            text no shell would take.
    """
    found: list[list[Word]] = []
    notes: list[str] = []
    for command in split_commands(text, source):
        where = f"{source}:{command[0].line}"
        if command[-1].broken_continuation:
            raise IosimError(
                "blanks follow the '\\' at the end of this line, so the command ends here",
                f"{source}:{command[-1].line}",
            )
        if command[0].text in _SHELL_WORDS:
            raise IosimError(
                f"iosim reads one QEMU command, not a shell program ('{command[0].text}')", where
            )
        words = _strip_prefixes(command)
        if not words:
            continue  # assignments only
        if _is_qemu(words[0].text):
            found.append(words)
        elif command[0].text.startswith("-"):
            raise IosimError(_continuation_hint(command[0]), where)
        else:
            notes.append(f"{where}: '{command[0].text}' is passed over; iosim reads the QEMU command")
    if not found:
        raise IosimError("there is no QEMU command in it (kvm, qemu-kvm or qemu-system-x86_64 ...)", source)
    lines: list[CommandLine] = []
    for program, *rest in found:
        _refuse_other_architectures(program, source)
        said = () if lines else tuple(notes)
        name = _base_name(program.text)
        lines.append(CommandLine(source, name, program.line, tuple(_options(rest, source)), said))
    return lines


def _base_name(program: str) -> str:
    return PurePosixPath(program).name


def _is_qemu(program: str) -> bool:
    name = _base_name(program)
    return name in ("kvm", "qemu-kvm", "qemu") or _ARCHITECTURE.match(name) is not None


def _refuse_other_architectures(program: Word, source: str) -> None:
    architecture = _ARCHITECTURE.match(_base_name(program.text))
    if architecture and architecture[1] not in ("x86_64", "i386"):
        raise IosimError(
            f"iosim knows the x86 machines pc and q35, not those of {architecture[0]}; "
            "there is qemu-system-x86_64",
            f"{source}:{program.line}",
        )


def _strip_prefixes(words: list[Word]) -> list[Word]:
    """Take off assignments and commands such as ``sudo -u root`` that stand before the program."""
    at = 0
    while at < len(words):
        text = words[at].text
        if _ASSIGNMENT.match(text):
            at += 1
        elif _base_name(text) in _PREFIXES:
            with_word, positional = _PREFIXES[_base_name(text)]
            at += 1
            while at < len(words) and words[at].text.startswith("-"):
                at += 2 if words[at].text in with_word.split() else 1
            at += positional
        else:
            break
    return words[at:]


def _continuation_hint(word: Word) -> str:
    return f"'{word.text}' begins a command of its own; does the line before it lack its '\\'?"


def _options(words: list[Word], source: str) -> list[Option]:
    options: list[Option] = []
    at = 0
    while at < len(words):
        word = words[at]
        where = f"{source}:{word.line}"
        at += 1
        if not word.text.startswith("-") or word.text == "-":
            options.append(Option("hda", word.text, where, word.line, positional=True))
            continue
        # QEMU takes one dash or two (lookup_opt in its vl.c).
        name = word.text[2:] if word.text.startswith("--") else word.text[1:]
        if name not in OPTIONS:
            raise _no_such_option(word.text, name, where)
        value = ""
        if OPTIONS[name]:
            if at == len(words):
                raise IosimError(f"-{name} requires an argument", where)
            value = words[at].text
            # QEMU would take the next option for the argument and complain of that, which misleads.
            if value.startswith("-") and value.lstrip("-") in OPTIONS and name != "append":
                raise IosimError(f"-{name} requires an argument, and '{value}' is the next option", where)
            at += 1
        options.append(Option(name, value, where, word.line))
    return options


def _no_such_option(text: str, name: str, where: str) -> IosimError:
    before = name.partition("=")[0]
    if OPTIONS.get(before):
        return IosimError(f"'{text}': QEMU takes the argument as a word of its own: -{before} ...", where)
    return unknown("option", text, [f"-{option}" for option in OPTIONS], where)
