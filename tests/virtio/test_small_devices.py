"""Console (virtio 1.2, 5.3), entropy source (5.4) and input devices (5.8); and the examples in all modules."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import struct

import pytest
from hostile import Chain, attack, chains
from hypothesis import given, settings
from hypothesis import strategies as st

import iosim.virtio
from iosim.errors import IosimError
from iosim.ring.memory import GuestMemory, allocate
from iosim.ring.virtqueue import Buffer, new_virtqueue
from iosim.virtio import console as con
from iosim.virtio import input as inp
from iosim.virtio.console import CONTROL_RECEIVEQ, CONTROL_TRANSMITQ, ConsoleDevice, Control, receiveq, transmitq
from iosim.virtio.errors import FormatError, RequestError
from iosim.virtio.features import feature_set
from iosim.virtio.input import EV_ABS, EV_KEY, EV_LED, EV_SYN, AbsInfo, InputDevice, InputEvent, keyboard, tablet
from iosim.virtio.rng import RngDevice
from iosim.virtio.transport import Driver


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(iosim.virtio.__path__)])
def test_the_examples_run(name: str) -> None:
    module = importlib.import_module(f"iosim.virtio.{name}")
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried or name in ("__init__", "device", "errors", "ids", "rng")


def post(driver: Driver, index: int, *sizes: int) -> None:
    for size in sizes:
        driver.submit(index, [], [Buffer(allocate(driver.mem, size, 1), size)])
    driver.kick(index)


def taken(driver: Driver, index: int) -> list[bytes]:
    return [reply.contents[: reply.length] for reply in driver.collect(index)]


# The entropy source.


def test_5_4_6_buffers_are_filled() -> None:
    driver = Driver(RngDevice(), GuestMemory(1 << 18))
    first, second = (driver.request(0, b"", 64, in_cuts=[7, 30]) for _ in range(2))
    assert len(first) == len(second) == 64
    assert first != second


def test_5_4_6_1_a_long_buffer_comes_back_with_a_part() -> None:
    driver = Driver(RngDevice(lambda n: b"r" * n, max_bytes=10), GuestMemory(1 << 18))
    reply = driver.exchange(0, b"", 100)
    assert (reply.length, reply.contents[9:11]) == (10, b"r\0")


@pytest.mark.parametrize("chain", [Chain(b"x", 0), Chain(b"x", 8)])
def test_5_4_6_1_readable_buffers_stop_the_device(chain: Chain) -> None:
    driver = attack(RngDevice(), [(0, chain)])
    assert isinstance(driver.device.error, RequestError)


@given(st.lists(st.tuples(st.just(0), chains(st.just(b""))), min_size=1, max_size=4))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_any_bytes_to_the_entropy_source(sequence: list[tuple[int, Chain]]) -> None:
    attack(RngDevice(), sequence)


# The console.


class Terminal:
    """A console and all that came out of it."""

    def __init__(self, ports: tuple[str, ...] = ("",), understood: int = (1 << 64) - 1, **options: object) -> None:
        self.out: dict[int, bytes] = {}
        self.device = ConsoleDevice(self.take, ports, **options)  # type: ignore[arg-type]
        self.driver = Driver(self.device, GuestMemory(1 << 20), understood)

    def take(self, port: int, data: bytes) -> None:
        self.out[port] = self.out.get(port, b"") + data

    def control(self, *message: int) -> None:
        self.driver.request(CONTROL_TRANSMITQ, Control(*message).pack(), 0)

    def messages(self) -> list[Control]:
        return [Control.unpack(data) for data in taken(self.driver, CONTROL_RECEIVEQ)]


def test_5_3_2_queue_indexes() -> None:
    assert [(receiveq(n), transmitq(n)) for n in range(3)] == [(0, 1), (4, 5), (6, 7)]


def test_5_3_6_characters_both_ways() -> None:
    console = Terminal()
    assert console.device.num_queues == 2
    console.driver.request(1, b"hello", 0, out_cuts=[2])
    assert console.out == {0: b"hello"}
    assert console.device.input(b"typed") == []
    post(console.driver, 0, 3, 3, 3)
    assert taken(console.driver, 0) == [b"typ", b"ed"]
    assert console.device.input(b"!") == [0]
    assert taken(console.driver, 0) == [b"!"]


def test_5_3_4_size_and_5_3_5_last_words() -> None:
    console = Terminal(size=(80, 25))
    assert console.device.config() == struct.pack("<HHII", 80, 25, 1, 0)
    assert console.device.resize(132, 50) == []
    assert console.driver.config_changes == 1
    assert console.device.config()[:4] == struct.pack("<HH", 132, 50)
    for letter in b"panic":
        console.device.write_config(8, struct.pack("<I", letter))
    console.device.write_config(0, b"ignored")
    assert console.out == {0: b"panic"}
    without = Terminal(understood=feature_set(["VERSION_1"]))
    without.device.resize(1, 1)
    assert without.driver.config_changes == 0
    with pytest.raises(IosimError, match="at most 65535"):
        console.device.resize(65536, 0)


def test_5_3_6_2_ports_come_up_one_after_the_other() -> None:
    console = Terminal(("", "org.example.agent"))
    assert console.device.num_queues == 6
    post(console.driver, CONTROL_RECEIVEQ, *[64] * 8)
    console.control(0, con.VIRTIO_CONSOLE_DEVICE_READY, 1)
    assert console.messages() == [Control(n, con.VIRTIO_CONSOLE_PORT_ADD, 1) for n in (0, 1)]
    console.control(0, con.VIRTIO_CONSOLE_PORT_READY, 1)
    assert [m.event for m in console.messages()] == [con.VIRTIO_CONSOLE_CONSOLE_PORT, con.VIRTIO_CONSOLE_PORT_OPEN]
    console.control(1, con.VIRTIO_CONSOLE_PORT_READY, 1)
    name = Control(1, con.VIRTIO_CONSOLE_PORT_NAME, 1, b"org.example.agent")
    assert console.messages() == [name, Control(1, con.VIRTIO_CONSOLE_PORT_OPEN, 1)]
    post(console.driver, receiveq(1), 64)
    console.device.input(b"before", 1)
    assert taken(console.driver, receiveq(1)) == [], "the port is not open yet"
    console.control(1, con.VIRTIO_CONSOLE_PORT_OPEN, 1)
    assert console.driver.interrupts[-2:] == [CONTROL_TRANSMITQ, receiveq(1)]
    assert taken(console.driver, receiveq(1)) == [b"before"]
    console.driver.request(transmitq(1), b"from the agent", 0)
    assert console.out == {1: b"from the agent"}
    console.control(1, con.VIRTIO_CONSOLE_PORT_OPEN, 0)
    assert console.device.open_ports == set()
    console.device.resize(10, 20)
    (message,) = console.messages()
    assert message == Control(0, con.VIRTIO_CONSOLE_RESIZE, 0, struct.pack("<HH", 10, 20))


def test_control_messages_wait_for_buffers_and_nonsense_is_ignored() -> None:
    console = Terminal(("", "second"))
    console.control(0, con.VIRTIO_CONSOLE_DEVICE_READY, 1)
    console.control(0, con.VIRTIO_CONSOLE_DEVICE_READY, 0)
    console.control(2, con.VIRTIO_CONSOLE_PORT_OPEN, 1)
    console.control(0, 99, 1)
    console.control(0, con.VIRTIO_CONSOLE_PORT_READY, 0)
    console.driver.request(CONTROL_TRANSMITQ, b"short", 0)
    assert console.device.ignored == 4
    post(console.driver, CONTROL_RECEIVEQ, 64, 64)
    assert len(console.messages()) == 2


def test_without_multiport_there_is_one_port() -> None:
    console = Terminal(("", "second"), understood=feature_set(["VERSION_1"]))
    console.driver.request(1, b"x", 0)
    assert console.out == {0: b"x"}
    console.driver.submit(5, [Buffer(0x100, 4)], [])
    console.driver.kick(5)
    assert console.driver.collect(5) == []


def test_5_3_6_2_formats() -> None:
    assert Control(1, 7, 1, b"n").pack().hex() == "01000000" "0700" "0100" "6e"
    with pytest.raises(FormatError, match="8 bytes at least, not 7"):
        Control.unpack(bytes(7))
    with pytest.raises(FormatError):
        Control(0, 1 << 16).pack()


def test_what_a_console_refuses() -> None:
    console = Terminal()
    with pytest.raises(IosimError, match="ports 0 to 0"):
        console.device.input(b"x", 1)
    console.device.input(bytes(1 << 20))
    with pytest.raises(IosimError, match="nobody takes them"):
        console.device.input(b"x")
    with pytest.raises(IosimError, match="1 to 31"):
        ConsoleDevice(print, ())
    console.driver.submit(0, [Buffer(0x100, 4)], [])
    console.driver.kick(0)
    assert isinstance(console.device.error, RequestError)


controls = st.builds(lambda p, e, v: Control(p, e, v).pack(), st.integers(0, 3), st.integers(0, 8), st.integers(0, 2))


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 5), chains(controls)), min_size=1, max_size=6))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_any_bytes_to_a_console(sequence: list[tuple[int, Chain]]) -> None:
    device = ConsoleDevice(lambda port, data: None, ("", "two"))
    device.input(b"some input", 0)
    attack(device, sequence)


# Input devices.


def asked(device: InputDevice, select: int, subsel: int = 0) -> bytes:
    device.write_config(0, bytes([select]))
    device.write_config(1, bytes([subsel]))
    head = device.read_config(0, 8)
    assert head[:2] == bytes([select, subsel])
    return device.read_config(8, head[2]) if head[2] else b""


def test_5_8_4_what_a_driver_can_ask() -> None:
    device = tablet()
    assert len(device.config()) == 136
    assert asked(device, inp.VIRTIO_INPUT_CFG_ID_NAME) == b"iosim tablet"
    assert asked(device, inp.VIRTIO_INPUT_CFG_ID_DEVIDS) == struct.pack("<4H", 6, 0x0627, 3, 1)
    keys = asked(device, inp.VIRTIO_INPUT_CFG_EV_BITS, EV_KEY)
    assert {n for n in range(8 * len(keys)) if keys[n // 8] >> n % 8 & 1} == {0x110, 0x111, 0x112}
    assert asked(device, inp.VIRTIO_INPUT_CFG_EV_BITS, EV_ABS) == b"\3"
    assert asked(device, inp.VIRTIO_INPUT_CFG_ABS_INFO, 1) == struct.pack("<5i", 0, 0x7FFF, 0, 0, 0)
    assert asked(device, inp.VIRTIO_INPUT_CFG_ABS_INFO, 2) == b""
    assert asked(device, inp.VIRTIO_INPUT_CFG_EV_BITS, EV_LED) == b"", "5.8.5.1: size 0 says no such thing"
    assert asked(device, inp.VIRTIO_INPUT_CFG_ID_SERIAL) == b""
    assert asked(device, 0xFF, 0xFF) == b""
    device.write_config(2, b"\xff" * 134)
    assert device.config()[2:] == bytes(134)
    device.write_status(0)
    assert device.config()[:3] == bytes(3)


def test_5_8_6_events_go_in_groups_or_not_at_all() -> None:
    device = keyboard()
    driver = Driver(device, GuestMemory(1 << 18))
    press = [InputEvent(EV_KEY, 30, 1), InputEvent(EV_SYN, 0, 0)]
    assert device.send(press) == []
    post(driver, 0, 8)
    assert device.send(press) == []
    assert device.dropped == 4
    post(driver, 0, 8, 8, 16)
    assert device.send(press[:1]) == [], "not before SYN_REPORT"
    assert device.send(press[1:]) == [0]
    assert [InputEvent.unpack(data) for data in taken(driver, 0)] == press
    assert InputEvent.unpack(InputEvent(2, 8, -1).pack()).value == 0xFFFFFFFF


def test_event_buffers_go_with_their_queue() -> None:
    device = keyboard()
    driver = Driver(device, GuestMemory(1 << 18))
    post(driver, 0, 8)
    device.send([InputEvent(EV_KEY, 30, 1), InputEvent(EV_SYN, 0, 0)])
    device.set_queue(0, new_virtqueue(driver.mem, 8)[1])
    assert device.send([InputEvent(EV_SYN, 0, 0)]) == []
    assert device.dropped == 3


def test_5_8_6_the_status_queue() -> None:
    leds: list[InputEvent] = []
    driver = Driver(keyboard(leds.append), GuestMemory(1 << 18))
    driver.request(1, InputEvent(EV_LED, 1, 1).pack(), 0, out_cuts=[3])
    assert leds == [InputEvent(EV_LED, 1, 1)]
    assert Driver(keyboard(), GuestMemory(1 << 18)).request(1, bytes(8), 0) == b""


def test_what_stops_an_input_device() -> None:
    driver = attack(keyboard(), [(1, Chain(bytes(7), 0))])
    assert "of 7 bytes, not 8" in str(driver.device.error)
    device = keyboard()
    post(Driver(device, GuestMemory(1 << 18)), 0, 7)
    device.send([InputEvent(EV_SYN, 0, 0)])
    assert "an event buffer of 7 bytes, not 8" in str(device.error)
    for bad in (lambda: InputEvent(1 << 16, 0, 0).pack(), lambda: InputEvent.unpack(bytes(7))):
        with pytest.raises(FormatError):
            bad()
    with pytest.raises(IosimError, match="room for 0 to 1023"):
        InputDevice("x", {EV_KEY: [1024]})
    with pytest.raises(IosimError, match="longer than 128 bytes"):
        InputDevice("x" * 129, {}, axes={0: AbsInfo(0, 1)})


@given(st.lists(st.tuples(st.integers(0, 1), chains(st.binary(min_size=8, max_size=8))), min_size=1, max_size=6))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_any_bytes_to_an_input_device(sequence: list[tuple[int, Chain]]) -> None:
    device = keyboard()
    attack(device, sequence)
    device.send([InputEvent(EV_KEY, 1, 1), InputEvent(EV_SYN, 0, 0)])


@given(st.lists(st.tuples(st.integers(0, 140), st.binary(max_size=140)), max_size=5))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_any_write_to_any_configuration_space_keeps_its_size(writes: list[tuple[int, bytes]]) -> None:
    for device in (keyboard(), ConsoleDevice(lambda port, data: None), RngDevice()):
        size = len(device.config())
        for offset, data in writes:
            device.write_config(offset, data)
            device.read_config(offset, len(data))
        assert len(device.config()) == size
