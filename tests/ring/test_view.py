"""The view of a ring against what is known otherwise: QEMU's own indexes, and iosim's two sides at every step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iosim.errors import IosimError
from iosim.ring.image import choose, read_dump, read_snapshots
from iosim.ring.memory import GuestMemory
from iosim.ring.session import STEPS, Session
from iosim.ring.view import DEVICE, Place, look, look_at

DATA = Path(__file__).parent / "data"
IMAGES = [
    pytest.param(path, snapshot, id=f"{path.stem}-{number}")
    for path in sorted(DATA.glob("**/*.json"))
    for number, snapshot in enumerate(read_snapshots(path, event_idx="noevidx" not in path.stem))
]


@pytest.mark.parametrize(("path", "snapshot"), IMAGES)
def test_an_image_shows_what_qemu_has_in_use(path, snapshot) -> None:
    """As many chains taken as QEMU's `inuse` (packed: descriptors), and none of them breaks a rule."""
    view = snapshot.view()
    assert view.problems == []
    taken = [chain for chain in view.in_flight if chain.taken]
    inuse = snapshot.device["inuse"]
    if not snapshot.place.packed:
        # Memory was read a moment after QEMU was asked: what came back meanwhile is missing.
        came_back = (view.device_area["idx"] - snapshot.device["used_idx"]) & 0xFFFF
        assert len(taken) + came_back >= inuse >= len(taken)
    elif view.device_area["off"] == snapshot.device["last_avail_idx"]:
        assert sum(len(chain.slots) for chain in taken) == inuse
    assert all(view.slots[slot].owner == DEVICE for chain in view.in_flight for slot in chain.slots)


@given(
    size=st.sampled_from([1, 2, 4, 8]),
    event_idx=st.booleans(),
    packed=st.booleans(),
    moves=st.lists(
        st.sampled_from(["add", "kick", "pop", "push", "push last", "get", "interrupt", "notify off", "notify on",
                         "enable_cb", "enable_cb_delayed", "disable_cb", "irq"]),
        max_size=60,
    ),
    lengths=st.randoms(use_true_random=False),
)  # fmt: skip
def test_every_step_shows_what_the_sides_know(size, event_idx, packed, moves, lengths) -> None:
    session = Session(size, event_idx=event_idx, packed=packed)
    driver = session.driver.q
    for move in moves:
        if move == "add":
            n = lengths.randint(1, 3)
            if driver.num_free < n:
                continue
            cut = lengths.randint(0, n)
            step = "add out " + " ".join(["8"] * cut) + " in " + " ".join(["8"] * (n - cut))
        elif move.startswith("push"):
            if not session.taken:
                continue
            last = session.taken[-1]
            step = f"push {last.in_size} {last.head}" if move == "push last" else "push"
        else:
            step = move
        said = session.do(step)
        # A side's own decision is what the words give as the reason.
        if move in ("kick", "interrupt") and "so one is sent" not in said:
            yes = any(word in said for word in (", past", "clear", "ENABLE", "is among"))
            assert (": yes:" in said) == yes, said
        view = session.view()
        owned = {slot.index for slot in view.slots if slot.owner == DEVICE}
        flying = [h for h in range(size) if driver.desc_state[h] >= 0]
        pending_used = driver.size - driver.num_free - sum(len(c.slots) for c in view.in_flight)
        assert pending_used >= 0  # what is used and not yet taken back is nobody's but the driver's
        assert {chain.head for chain in view.in_flight} <= set(flying)
        assert sum(1 for c in view.in_flight if c.taken) == len(session.taken)
        assert {c.head for c in view.in_flight if c.taken} == {e.head for e in session.taken} or not view.exact
        assert view.problems == []
        if not packed:
            assert owned == {s for c in view.in_flight for s in c.slots}


def test_a_kick_is_shown_as_armed_exactly_where_the_next_chain_brings_it() -> None:
    session = Session(4)
    assert "the next chain brings a kick" in session.view().kick.text
    session.do("add out 8")
    assert not session.view().kick.armed
    assert session.do("kick").startswith("kick: yes")
    session.do("pop")
    session.do("notify on")
    assert session.view().kick.armed
    session.do("add out 8")
    assert session.do("kick").startswith("kick: yes")


@pytest.mark.parametrize("packed", [False, True])
def test_what_one_side_does_to_the_other_is_named(packed) -> None:
    session = Session(4, packed=packed)
    session.do("add out 8")
    field, value = ("desc[0].len", "0") if packed else ("avail.idx", "9")
    assert session.do(f"poke {field} {value}") == f"poke: {field} = {value}"
    assert session.view().problems
    said = session.do("pop")
    assert said.startswith("pop: ZeroLengthError" if packed else "pop: AvailIndexError")
    assert session.failed
    assert session.do("pop") == "pop: the device is broken and takes nothing"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("ad out 1", "unknown step 'ad'; did you mean 'add'?"),
        ("add 5", "'5': say 'out' or 'in' before the buffers' bytes"),
        ("add out x", "'x' is no number"),
        ("add out -1", "-1 is negative"),
        ("add out 99999999", "a buffer of 99999999 bytes"),
        ("add out 8 indirect", "begin the session with --indirect"),
        ("push", "the device has taken nothing; 'pop' first"),
        ("notify", "is neither: notify on|off"),
        ("kick 1", "'1' means nothing here"),
        ("poke avail.index 1", "unknown field 'avail.index'; did you mean 'avail.idx'?"),
        ("poke desc[4].len 1", "the queue has entries 0 to 3"),
        ("poke avail.idx 65536", "avail.idx has 16 bits; 65536 does not fit"),
    ],
)  # fmt: skip
def test_a_bad_step_is_one_line(step, message) -> None:
    session = Session(4)
    before = bytes(session.mem.u8)
    with pytest.raises(IosimError) as caught:
        session.do(step)
    assert message in str(caught.value)
    assert bytes(session.mem.u8) == before


@given(st.text(st.sampled_from("adkpush 0123[];.x\n#-"), max_size=40) | st.sampled_from(sorted(STEPS)))
def test_any_text_is_played_or_refused(text) -> None:
    session = Session(2)
    try:
        said = list(session.play(text))
    except IosimError as error:
        said = [str(error)]
    assert not any("\n" in line for line in said)


BYTES = st.binary(max_size=256)


@given(BYTES, BYTES, BYTES, st.booleans(), st.booleans(), st.sampled_from([1, 2, 8, 16]))
def test_any_bytes_can_be_looked_at(desc, avail, used, packed, event_idx, size) -> None:
    """Whatever stands in memory, looking ends and changes nothing."""
    mem = GuestMemory(4096)
    for at, part in ((0, desc), (1024, avail), (2048, used)):
        mem.u8[at : at + len(part)] = part
    data = bytes(mem.u8)
    view = look(mem, Place(size, 0, 1024, 2048, event_idx, packed))
    assert bytes(mem.u8) == data
    assert len(view.slots) == size
    json.dumps(view.to_dict())
    assert len({slot for chain in view.in_flight for slot in chain.slots}) <= size


def test_a_dump_and_a_snapshot_show_the_same(tmp_path) -> None:
    snapshot = choose(read_snapshots(DATA / "blk_split_evidx_indirect.json"), "initial")
    p = snapshot.place
    base = p.desc & ~0xFFF
    file = tmp_path / "ring.bin"
    file.write_bytes(bytes(snapshot.memory.u8[base : base + 4096]))
    view = read_dump(file, base, p).view()
    assert view.driver_area == snapshot.view().driver_area
    assert view.slots == snapshot.view().slots


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON document"),
        ("[]", "a document with 'snapshots', a list, is wanted"),
        ('{"snapshots": []}', "there are no snapshots"),
        ('{"snapshots": [7]}', "snapshot 0: a snapshot is an object"),
        ('{"snapshots": [{}]}', "snapshot 0: 'raw_hex' is missing"),
        ('{"snapshots": [{"raw_hex": {}, "num": 1, "desc_gpa": 0, "avail_gpa": 0}]}', "'used_gpa' is missing"),
        (
            '{"snapshots": [{"raw_hex": {"desc": "zz", "avail": "", "used": ""}, "num": 1, "desc_gpa": 0,'
            ' "avail_gpa": 64, "used_gpa": 128}]}',
            "non-hexadecimal",
        ),
    ],
)  # fmt: skip
def test_a_bad_document_is_one_line(tmp_path, text, message) -> None:
    file = tmp_path / "image.json"
    file.write_text(text)
    with pytest.raises(IosimError, match=r"image\.json") as caught:
        read_snapshots(file)
    assert message in str(caught.value)


def test_a_queue_that_is_not_in_the_dump_is_refused(tmp_path) -> None:
    file = tmp_path / "dump"
    file.write_bytes(bytes(4096))
    with pytest.raises(IosimError, match=r"desc stands at 0x10, the file has 0x1000 to 0x1fff"):
        read_dump(file, 0x1000, Place(4, 0x10, 0x1000, 0x1100))
    with pytest.raises(IosimError, match="cannot read"):
        read_dump(tmp_path / "none", 0, Place(4, 0, 64, 128))


def test_one_side_is_enough() -> None:
    session = Session(4)
    session.do("add out 8")
    whole, half = session.view(), look_at(session.driver.q, None)
    assert whole.slots == half.slots
    assert half.device == {}
