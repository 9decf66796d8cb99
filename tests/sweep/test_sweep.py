"""Sweeps: the grid, the table, the workers, the file."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import iosim
from iosim import sweep_workers
from iosim.errors import IosimError
from iosim.sweep import Sweep, sweep

DEPTHS = {"workload.depth": [1, 4], "workload.think_time": ["0us", "5us"]}


def small(**more: Any) -> Sweep:
    return sweep(["virtio-net", "vhost-net"], DEPTHS, **{"requests": 100, "workers": 1, **more})


@pytest.fixture(scope="module")
def reference() -> Sweep:
    return small()


def same(a: pa.Table, b: pa.Table) -> bool:
    return bool(a.equals(b, check_metadata=True))


def test_a_grid_is_the_product_in_the_order_given(reference: Sweep) -> None:
    table = reference.table.to_pydict()
    assert table["point"] == list(range(8))
    assert table["model"] == ["virtio-net"] * 4 + ["vhost-net"] * 4
    assert table["workload.depth"] == [1, 1, 4, 4] * 2
    assert table["workload.think_time"] == ["0us", "5us"] * 4
    assert table["workload.think_time_ns"] == [0.0, 5000.0] * 4
    assert str(reference.points[6]) == "vhost-net, workload.depth=4, workload.think_time=0us"
    assert reference.complete
    assert repr(reference) == (
        "<Sweep: 8 of 8 points, over model (2), workload.depth (2), workload.think_time (2)>"
    )


def test_a_row_is_what_one_run_gives(reference: Sweep) -> None:
    row = reference.table.slice(7, 1).to_pylist()[0]
    run = iosim.simulate("vhost-net", requests=100, workload__depth=4, workload__think_time="5us")
    document = run.to_dict()
    for name in ("mean", "p50", "p90", "p99", "p99_9"):
        estimate = document["latency_ns"][name]
        found = [row[f"latency_{name}_ns{end}"] for end in ("", "_low", "_high")]
        assert found == [estimate["value"], estimate["low"], estimate["high"]]
    assert row["latency_max_ns"] == document["latency_ns"]["max"]["value"]
    assert row["throughput_per_s"] == document["throughput_per_s"]["value"]
    assert row["bits_per_s"] == document["bits_per_s"]["value"]
    for name in ("kicks", "interrupts", "userspace_exits", "context_switches", "copied_bytes"):
        assert row[name] == pytest.approx(document["per_request"][name]["value"], rel=1e-12)
    for reason, estimate in document["per_request"]["exits"].items():
        assert row[f"exits.{reason}"] == pytest.approx(estimate["value"], rel=1e-12)
    assert row["exits"] == pytest.approx(sum(e["value"] for e in document["per_request"]["exits"].values()))
    busy = {name: e["value"] for name, e in document["cpu_busy"].items()}
    assert {name: row[f"cpu_busy.{name}"] for name in busy} == busy
    assert row["cpu_cores_busy"] == pytest.approx(sum(busy.values()))
    assert row["cpu_busy.qemu-main"] is None  # vhost-net has no such thread
    assert (row["requests"], row["duration_ns"], row["seed"]) == (100, run.duration_ns, 1)
    assert (row["warnings"], row["error"]) == ([], None)


def test_the_table_does_not_depend_on_the_workers(reference: Sweep, tmp_path: Path) -> None:
    three = small(workers=3, out=tmp_path / "three.parquet")
    assert same(three.table, reference.table)
    reference.to_parquet(tmp_path / "one.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "three.parquet").read_bytes()


def test_progress_counts_up_to_all_points() -> None:
    seen: list[tuple[int, int]] = []
    small(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 8) for i in range(9)]


def test_replications_have_other_random_numbers_and_points_have_the_same() -> None:
    found = sweep("vhost-net", {"workload.size": [1, 2]}, requests=50, replications=2, seed=3, workers=1)
    table = found.table.to_pydict()
    assert table["replication"] == [0, 1, 0, 1]
    assert table["seed"] == [3] * 4
    first, second, larger, _ = table["latency_mean_ns"]
    assert first != second
    # Common random numbers: a byte more changes next to nothing, replications differ by far more.
    assert abs(larger - first) < abs(second - first) / 10


def test_model_host_and_workload_are_keys() -> None:
    found = sweep(vary=["workload=rr,tx", "model=e1000,vhost-net", "host=composite"], requests=20, workers=1)
    table = found.table.to_pydict()
    assert table["workload"] == ["rr", "rr", "tx", "tx"]
    assert table["model"] == ["e1000", "vhost-net"] * 2
    assert table["host"] == ["composite"] * 4


def test_types_of_columns() -> None:
    rates = {"workload.rate": [10_000, 2e4], "host.wire_rate": ["1Gbit/s", "10Gbit/s"]}
    vary = {"device.event_idx": "on,off", **rates}
    table = sweep("vhost-net", vary, workload="rx", requests=20, workers=1).table
    assert table.schema.field("device.event_idx").type == pa.bool_()
    assert table["workload.rate"].to_pylist() == [1e4, 1e4, 2e4, 2e4] * 2
    assert table["host.wire_rate_bit_per_s"].to_pylist() == [1e9, 1e10] * 4


@pytest.mark.parametrize(
    ("models", "vary", "more", "says"),
    [
        ("vhost-nt", "workload.depth=1", {}, "unknown model 'vhost-nt'; did you mean 'vhost-net'?"),
        ("vhost-net", "workload.dept=1", {}, "'workload.dept'; did you mean 'workload.depth'?"),
        ("vhost-net", "depth=1", {}, "'depth'; did you mean 'workload.depth'?"),
        ("vhost-net", "hots=composite", {}, "'hots'; did you mean 'host'?"),
        ("vhost-net", "host=composit", {}, "unknown host 'composit'; did you mean 'composite'?"),
        ("vhost-net", "workload.think_time=1sec", {}, "unknown unit 'sec'"),
        ("vhost-net", "workload.depth=1..10k*10", {}, "must be at most 1024, not 10000"),
        ("vhost-net", "device.event_idx=on,maybe", {}, "neither on nor off"),
        (["vhost-net", "e1000"], "device.event_idx=on,off", {}, "(at the point e1000, device.event_idx=on)"),
        ("vhost-net", "workload.depth=1..1024", {"replications": 1000}, "1024000 points"),
        ("vhost-net", "model=e1000", {}, "model: is varied, and models are given besides"),
        ([], "workload.depth=1", {}, "no model is given"),
        ("vhost-net", "workload.depth=1", {"settings": {"workload.depth": 2}}, "depth: is varied, and set"),
        ("vhost-net", "workload=rr", {"workload": "tx"}, "workload.name: is varied, and set besides"),
        ("vhost-net", "run.replication=1,2", {"replications": 2}, "and replications besides"),
        ("vhost-net", (), {"replications": 0}, "replications: must be a whole number from 1"),
        ("vhost-net", (), {"workers": 0}, "workers: must be a whole number from 1"),
        ("vhost-net", (), {"settings": {"workload.depth": object()}}, "workload.depth: <object"),
        ("vhost-net", (), {"requests": "many"}, "'many' is no number"),
    ],
)
def test_nothing_runs_where_a_point_makes_no_sense(
    models: Any, vary: Any, more: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_workers, "run", lambda spec: pytest.fail("a point was run"))
    with pytest.raises(IosimError) as error:
        sweep(models, vary, out=tmp_path / "new" / "out.parquet", **{"workers": 1, **more})
    assert says in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_point_that_cannot_be_run_is_a_row_with_its_error() -> None:
    # 20 us hold no round trip; 2 ms hold some.
    found = sweep("vhost-net", {"run.duration": ["20us", "2ms"]}, workers=1)
    failed, good = found.table.to_pylist()
    assert failed["latency_mean_ns"] is None
    assert failed["workload"] == "rr"
    assert "no request completed" in failed["error"]
    assert good["error"] is None
    assert good["requests"] > 10
    assert found.warnings == [f"vhost-net, run.duration=20us: could not be run: {failed['error']}"]


def test_no_table_where_no_point_can_be_run(tmp_path: Path) -> None:
    with pytest.raises(IosimError, match=r"none of 2 points could be run; the first: .*no request completed"):
        sweep("vhost-net", {"run.duration": ["20us", "21us"]}, workers=1, out=tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []


class StopError(Exception):
    pass


def stop_after(points: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done == points:
            raise StopError

    return progress


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_sweep_keeps_its_points_and_goes_on(
    workers: int, reference: Sweep, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    with pytest.raises(StopError):
        small(workers=workers, out=out, progress=stop_after(3))
    part = Sweep.from_parquet(out)
    assert len(part.table) == 3
    assert not part.complete
    assert part.table.schema.names[:8] == reference.table.schema.names[:8]
    assert part.points == [reference.points[i] for i in part.table["point"].to_pylist()]
    seen: list[int] = []
    whole = small(workers=workers, out=out, progress=lambda done, total: seen.append(done))
    assert seen == [3, 4, 5, 6, 7, 8]
    assert same(whole.table, reference.table)
    assert same(Sweep.from_parquet(out).table, reference.table)
    assert os.listdir(tmp_path) == ["out.parquet"]


def test_a_finished_sweep_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small(out=tmp_path / "out.parquet")
    monkeypatch.setattr(sweep_workers, "run", lambda spec: pytest.fail("a point was run"))
    assert same(small(out=tmp_path / "out.parquet").table, first.table)


def test_the_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    small(out=out)
    with pytest.raises(IosimError, match=r"holds another sweep \(with other settings, seed\); name another"):
        small(out=out, seed=2)
    with pytest.raises(IosimError, match="with other axes"):
        small(out=out, replications=2)
    assert Sweep.from_parquet(out).specification["seed"] == 1
    small(out=out, seed=2, overwrite=True)
    assert Sweep.from_parquet(out).specification["seed"] == 2
    pq.write_table(pa.table({"a": [1]}), out)
    with pytest.raises(IosimError, match="holds no sweep of iosim; name another file, or overwrite it"):
        small(out=out)
    out.write_text("no Parquet")
    with pytest.raises(IosimError, match="is no Parquet file"):
        small(out=out)
    assert out.read_text() == "no Parquet"


def test_a_host_file_that_was_edited_is_another_host(tmp_path: Path) -> None:
    host, out = tmp_path / "my.toml", tmp_path / "out.parquet"
    text = 'title = "mine"\n[properties.cpus]\nvalue = {}\nsource = "a test"\n'
    host.write_text(text.format(0))
    sweep("vhost-net", "workload.depth=1,2", host=str(host), requests=20, workers=1, out=out)
    host.write_text(text.format(4))
    with pytest.raises(IosimError, match="with other hosts"):
        sweep("vhost-net", "workload.depth=1,2", host=str(host), requests=20, workers=1, out=out)


def test_a_directory_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_workers, "run", lambda spec: pytest.fail("a point was run"))
    with pytest.raises(IosimError, match="directory"):
        small(out=tmp_path, overwrite=True)
    with pytest.raises(IosimError):
        small(out=tmp_path)


# No `if __name__ == "__main__"`, as people write scripts: its workers must not run it again.
SCRIPT = """
import sys
from iosim.sweep import sweep
print("begun", flush=True)
def progress(done, total):
    print(done, total, flush=True)
sweep("vhost-net", "workload.depth=1,2,3,4", requests=int(sys.argv[2]), progress=progress,
      workers=2, out=sys.argv[1])
"""


@pytest.mark.slow
def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "out.parquet"), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:2] == ["begun", "0 4"]
    assert done.stdout.count("begun") == 1
    assert len(pq.read_table(tmp_path / "out.parquet")) == 4


LONG = "run.requests=20,21,1000000,1000001"
"""Two points that are short, and two that take minutes."""


def long_sweep(script: Path, out: Path) -> "subprocess.Popen[str]":
    """A script in the middle of its long points."""
    script.write_text(SCRIPT.replace('"workload.depth=1,2,3,4", requests=int(sys.argv[2])', f'"{LONG}"'))
    process = subprocess.Popen(
        [sys.executable, str(script), str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line == "2 4\n":
            break
    time.sleep(0.3)
    return process


@pytest.mark.slow
def test_ctrl_c_keeps_the_finished_points_and_ends_at_once(tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "out.parquet"
    process = long_sweep(script, out)
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all, workers and fork server too
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    assert process.returncode == -signal.SIGINT  # Python's own way out after KeyboardInterrupt
    assert stderr.count("Traceback") == 1  # the script's; workers are silent
    assert Sweep.from_parquet(out).table["run.requests"].to_pylist() == [20, 21]
    assert sorted(os.listdir(tmp_path)) == ["out.parquet", "script.py"]


@pytest.mark.slow
def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    process = long_sweep(tmp_path / "script.py", tmp_path / "out.parquet")
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)  # any process of its session
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail("workers went on without their parent")


def test_a_worker_that_is_killed_is_one_line(tmp_path: Path) -> None:
    def kill_one(done: int, total: int) -> None:
        if done == 2:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    out = tmp_path / "out.parquet"
    with pytest.raises(IosimError, match="a worker process was killed"):
        sweep("vhost-net", LONG, workers=2, out=out, progress=kill_one)
    assert Sweep.from_parquet(out).table["run.requests"].to_pylist() == [20, 21]
    assert multiprocessing.active_children() == []
