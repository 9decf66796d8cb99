"""The ring functions as the compiled engine has them answer what Python's do: split, packed, indirect, in order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import ring_walk

from iosim.run import run
from iosim.specification import specify

pytest.importorskip("llvmlite")

CASES = list(itertools.product([False, True], repeat=4))


def walk(engine: str, requests: int, **device: Any) -> tuple[list[Any], bytes]:
    ring_walk.built.clear()
    chosen = {f"device.{name}": value for name, value in device.items()}
    result = run(
        specify(ring_walk.MODEL, settings={"run.engine": engine, "run.requests": requests, "run.warmup": 0, **chosen})
    )
    return result.stamps.tolist(), bytes(ring_walk.built[-1].machine.memory.buffer)


@pytest.mark.parametrize(("packed", "indirect", "in_order", "event_idx"), CASES)
@pytest.mark.parametrize("hostile", [False, True])
def test_every_answer_and_every_byte_is_the_same(
    packed: bool, indirect: bool, in_order: bool, event_idx: bool, hostile: bool
) -> None:
    for size, start in ((8, 65530), (1, 1), (7 if packed else 4, 9)):
        device = {
            "packed": packed, "indirect": indirect, "in_order": in_order, "event_idx": event_idx, "size": size,
            "start": start, "seed": 5 + size, "hostile": hostile,
        }  # fmt: skip
        one, two = (walk(engine, 1500, **device) for engine in ("simpy", "compiled"))
        assert one[0] == two[0]
        assert one[1] == two[1]
