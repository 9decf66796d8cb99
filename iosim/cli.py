"""The command ``iosim``: a thin layer over the functions of the package, with its errors in one line.

Each command imports what it needs when it runs, so that `iosim --help` loads little more than click.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from iosim.errors import IosimError, unknown
from iosim.version import __version__

F = TypeVar("F", bound=Callable[..., Any])

USAGE_ERROR = 2
INTERRUPTED = 130


class _Group(click.Group):
    """The commands, with the nearest name for one that does not exist."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise unknown("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


def _common(command: F) -> F:
    """The options that every command which simulates has."""
    options = [
        click.option("--workload", "-w", metavar="NAME", help="rr (default), tx or rx; see 'iosim workloads'."),
        click.option("--host", default="composite", metavar="NAME|FILE", help="Costs: see 'iosim hosts'."),
        click.option("--requests", "-n", metavar="N", help="Requests to measure (default 20000)."),
        click.option("--duration", metavar="TIME", help="Length of the measured window instead, as 100ms."),
        click.option("--engine", metavar="NAME", help="simpy, compiled or auto (default): the result is the same."),
        click.option("--keep", metavar="NAME", help="requests (default), or summary: in constant memory."),
        click.option("--seed", metavar="N", help="Keys the random numbers (default 1)."),
        click.option(
            "--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Any setting, as workload.size=1000."
        ),
        click.option("--json", "as_json", is_flag=True, help="One JSON document to stdout, nothing else there."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="iosim", message="%(prog)s %(version)s")
def cli() -> None:
    """What does a virtualized I/O path cost, where does the time go, and what would change it?"""


@cli.command()
@click.argument("paths", nargs=-1, required=True, metavar="MODEL|FILE...")
@_common
@click.option("--out", metavar="NAME", default=None, help="Write NAME.png, NAME.json and NAME.parquet.")
@click.option("--workers", type=int, default=None, metavar="N", help="Processes to use (default: all cores).")
def compare(paths: tuple[str, ...], out: str | None, workers: int | None, **options: Any) -> None:
    """Paths side by side: models, or files with QEMU command lines. The first is the baseline."""
    from iosim.compare import compare as run_compare
    from iosim.files import write_text

    _check_workers(workers)
    with _progress("simulating", options["as_json"]) as progress:
        comparison = run_compare(*paths, workers=workers, progress=progress, **_arguments(options))
    written = []
    if out is not None:
        from iosim.plot import save

        name = _stem(out)
        written = [
            save(comparison.plot(), f"{name}.png"),
            write_text(f"{name}.json", comparison.to_json() + "\n"),
            comparison.to_parquet(f"{name}.parquet"),
        ]
    if options["as_json"]:
        click.echo(comparison.to_json())
    else:
        from iosim.show import comparison_table

        _print(comparison_table(comparison))
    _wrote(written, options["as_json"])


@cli.command()
@click.argument("model", metavar="MODEL|FILE")
@_common
@click.option("--out", metavar="NAME", default=None, help="Write NAME.png, NAME.json, NAME.parquet (requests).")
def run(model: str, out: str | None, **options: Any) -> None:
    """One path in full."""
    from iosim.compare import ask
    from iosim.files import write_text
    from iosim.run import simulate

    asked = ask(model)
    arguments = _arguments(options)
    arguments["settings"] = {**asked.settings, **arguments["settings"]}
    with _progress("simulating", options["as_json"]) as progress:
        result = simulate(asked.model, progress=progress, **arguments)
    written = []
    if out is not None:
        from iosim.plot import save

        name = _stem(out)
        written = [
            save(result.plot(), f"{name}.png"),
            write_text(f"{name}.json", result.to_json() + "\n"),
        ]
        if result.keeps_requests:
            written.append(result.to_parquet(f"{name}.parquet"))
        else:
            click.echo("iosim: no Parquet file: the run kept summaries only (run.keep=requests keeps all)", err=True)
    if options["as_json"]:
        click.echo(result.to_json())
    else:
        from iosim.show import run_table

        _print(run_table(result))
        for note in (*asked.notes, *asked.warnings):
            click.echo(note)
    _wrote(written, options["as_json"])


@cli.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--vary", multiple=True, required=True, metavar="KEY=VALUES", help="As workload.size=1,64,1024.")
@_common
@click.option("--replications", default="1", metavar="N", help="Samples of each point (default 1).")
@click.option("--out", required=False, metavar="FILE.parquet", help="Where to (default: sweep.parquet).")
@click.option("--overwrite", is_flag=True, help="Replace a file that holds another sweep.")
@click.option("--workers", type=int, default=None, metavar="N", help="Processes to use (default: all cores).")
def sweep(models: tuple[str, ...], vary: tuple[str, ...], **options: Any) -> None:
    """A grid of settings, on all cores, to one Parquet file and a figure."""
    from iosim.plot import save
    from iosim.settings import literal
    from iosim.sweep import sweep as run_sweep

    workers = options["workers"]
    _check_workers(workers)
    replications = literal(options["replications"])
    if not isinstance(replications, int) or isinstance(replications, bool) or replications < 1:
        raise IosimError(f"'{options['replications']}' is no number of samples; write 1 or more", "--replications")
    out = options["out"] or "sweep.parquet"
    if not out.endswith(".parquet"):
        out += ".parquet"
    arguments = _arguments(options)
    with _progress("sweeping", options["as_json"], count=True) as progress:
        found = run_sweep(
            models,
            vary,
            replications=replications,
            workers=workers,
            out=out,
            overwrite=options["overwrite"],
            progress=progress,
            **arguments,
        )
    figure = save(found.plot(), f"{_stem(out)}.png")
    if options["as_json"]:
        document = {"specification": found.specification, "points": found.table.to_pylist(), "warnings": found.warnings}
        click.echo(json.dumps(document, indent=2))
    else:
        from iosim.listing import sweep_table

        _print(sweep_table(found))
    _wrote([Path(out), figure], options["as_json"])


@cli.command()
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="One JSON document to stdout, nothing else there.")
def qemu(file: str, as_json: bool) -> None:
    """What a QEMU command line builds: PCI devices with slots, the guest's drivers, back ends."""
    from iosim import qemu as room

    machines = room.read_machines(file)
    if as_json:
        found = [room.to_dict(machine) for machine in machines]
        click.echo(json.dumps(found[0] if len(found) == 1 else found, indent=2))
    else:
        for machine in machines:
            _print(room.render(machine))


@cli.group(cls=_Group)
def ring() -> None:
    """Virtqueues made visible: decode one from memory, play one step by step, look into a simulated one."""


_EVERY = click.option("--all", "every", is_flag=True, help="Every descriptor, also of large queues.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document to stdout, nothing else there.")


@ring.command()
@click.argument("file", metavar="FILE")
@click.option("--snapshot", metavar="N|LABEL", help="Only this one: its number from 0, or the first with this label.")
@click.option("--base", metavar="ADDR", help="FILE is a plain dump of memory from this address on (QEMU: pmemsave).")
@click.option("--size", metavar="N", help="Of a dump: descriptors.")
@click.option("--desc", metavar="ADDR", help="Of a dump: the descriptor table (packed: ring).")
@click.option("--avail", metavar="ADDR", help="Of a dump: the available ring (packed: driver event area).")
@click.option("--used", metavar="ADDR", help="Of a dump: the used ring (packed: device event area).")
@click.option("--packed", is_flag=True, help="Of a dump: the queue is packed.")
@click.option("--event-idx/--no-event-idx", default=None, help="Whether EVENT_IDX was negotiated (default: yes).")
@_EVERY
@_JSON
def decode(file: str, snapshot: str | None, every: bool, as_json: bool, **place: Any) -> None:
    """A virtqueue in a file: a JSON document of snapshots, or a plain dump of guest memory."""
    from iosim.ring.image import choose, read_dump, read_snapshots
    from iosim.ring.view import Place
    from iosim.show_ring import ring_view

    said = {name: _whole(place[name], f"--{name}") for name in ("base", "size", "desc", "avail", "used")}
    event_idx = place["event_idx"]
    if said["base"] is None:
        for name in ("size", "desc", "avail", "used"):
            if said[name] is not None:
                raise IosimError("is about a plain dump; add --base ADDR", f"--{name}")
        found = read_snapshots(file, event_idx=event_idx)
    else:
        missing = [f"--{name}" for name, value in said.items() if value is None]
        if missing:
            raise IosimError(f"where does the queue stand? {', '.join(missing)} is missing", "--base")
        size, desc, avail, used = (said[name] or 0 for name in ("size", "desc", "avail", "used"))
        queue = Place(size, desc, avail, used, event_idx is not False, place["packed"])
        found = [read_dump(file, said["base"], queue)]
    chosen = found if snapshot is None else [choose(found, snapshot)]
    views = [(one.label, one.view()) for one in chosen]
    if as_json:
        click.echo(json.dumps([{"label": label, **view.to_dict()} for label, view in views], indent=2))
        return
    for number, (label, view) in enumerate(views):
        if number:
            click.echo()
        _print(ring_view(view, label, every=every))


@ring.command()
@click.argument("steps", nargs=-1, metavar="[STEP...]")
@click.option("--size", default="8", metavar="N", help="Descriptors (default 8).")
@click.option("--packed", is_flag=True, help="A packed virtqueue.")
@click.option("--event-idx/--no-event-idx", default=True, help="Negotiate EVENT_IDX (default: yes).")
@click.option("--indirect", is_flag=True, help="Negotiate INDIRECT_DESC.")
@click.option("--in-order", is_flag=True, help="Negotiate IN_ORDER.")
@click.option("--quiet", "-q", is_flag=True, help="The steps' outcomes only; the ring once, at the end.")
@_EVERY
@_JSON
def step(steps: tuple[str, ...], size: str, quiet: bool, every: bool, as_json: bool, **features: bool) -> None:
    """A virtqueue played step by step, from the arguments or from stdin; 'iosim ring steps' lists them.

    iosim ring step "add out 64 in 512; kick; pop; push 512; interrupt; get"
    """
    from iosim.ring.session import Session
    from iosim.show_ring import ring_view

    session = Session(_whole(size, "--size") or 0, **features)
    played = []
    for line in steps or _lines():
        for text in session.play(line):
            played.append({"step": text, **session.view().to_dict()})
            if not as_json:
                click.echo(text)
                if not quiet:
                    _print(ring_view(session.view(), every=every))
                    click.echo()
    if as_json:
        click.echo(json.dumps(played, indent=2))
    elif quiet:
        _print(ring_view(session.view(), every=every))


@ring.command()
def steps() -> None:
    """The steps that 'iosim ring step' knows."""
    from iosim.ring.session import STEPS

    for text in STEPS.values():
        click.echo(text)


@ring.command()
@click.argument("model", metavar="MODEL|FILE")
@click.option("--at", "time", default="1ms", metavar="TIME", help="When, from the start of the run (default 1ms).")
@_common
@_EVERY
def show(model: str, time: str, every: bool, **options: Any) -> None:
    """The virtqueues of a simulated path at a moment of its run."""
    from iosim.compare import ask
    from iosim.host.units import parse_time
    from iosim.queues import queues
    from iosim.run import install
    from iosim.show_ring import ring_view

    asked = ask(model)
    arguments = _arguments(options)
    moment = parse_time(time, "--at")
    if moment < 0:
        raise IosimError(f"'{time}' lies before the start", "--at")
    path = install(
        asked.model,
        workload=arguments["workload"],
        host=arguments["host"],
        seed=arguments["seed"],
        settings={**asked.settings, **arguments["settings"]},
    )
    if moment:
        path.env.run(until=moment)
    views = queues(path)
    if not views:
        raise IosimError(f"{asked.model} has no virtqueues", "MODEL")
    if options["as_json"]:
        click.echo(json.dumps({name: view.to_dict() for name, view in views.items()}, indent=2))
        return
    for number, (name, view) in enumerate(views.items()):
        if number:
            click.echo()
        _print(ring_view(view, f"{name} at {time}", every=every))


@cli.command()
def models() -> None:
    """The models there are, one line each."""
    from iosim import model as registry

    for name in registry.names():
        click.echo(f"{name:<12} {registry.find(name).summary}")


@cli.command()
@click.argument("host", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document to stdout, nothing else there.")
def hosts(host: str | None, as_json: bool) -> None:
    """The hosts there are; with a name, each of its numbers with its source."""
    from iosim.host import hosts as room
    from iosim.listing import host_dict, host_table

    if host is None:
        for name in room.names():
            click.echo(f"{name:<12} {room.load(name).title} ({room.load(name).describe()})")
        return
    found = room.load(host)
    if as_json:
        click.echo(json.dumps(host_dict(found), indent=2))
    else:
        _print(host_table(found))


@cli.command()
def workloads() -> None:
    """The workloads there are, one line each."""
    from iosim.workload.spec import MEANINGS

    for name, meaning in MEANINGS.items():
        click.echo(f"{name:<4} {meaning}")


@cli.command()
@click.argument("model", default="virtio-net")
def settings(model: str) -> None:
    """Every setting a model knows, with what it means."""
    from iosim import model as registry
    from iosim.listing import settings_table

    _print(settings_table(registry.find(model)))


@cli.command()
@click.argument("device", metavar="vhost-user-blk|vhost-user-net")
@click.option("--socket", required=True, metavar="PATH", help="The socket to make; QEMU connects there.")
@click.option("--disk", metavar="FILE", help="blk: the file that is the disk.")
@click.option("--size", metavar="SIZE", help="blk: a disk in memory instead, as 64M (the default).")
@click.option("--read-only", is_flag=True, help="blk: the guest may not write.")
@click.option("--serial", default="iosim", metavar="NAME", help="blk: what the guest reads as serial number.")
@click.option("--queues", type=int, default=1, metavar="N", help="Request queues, or pairs of queues.")
@click.option("--queue-size", type=int, metavar="N", help="Descriptors, in the command line that is printed.")
@click.option("--event-idx/--no-event-idx", default=True, help="Offer VIRTIO_F_EVENT_IDX (default).")
@click.option("--indirect/--no-indirect", default=True, help="Offer VIRTIO_F_INDIRECT_DESC (default).")
@click.option("--packed/--split", default=False, help="Offer VIRTIO_F_RING_PACKED (default: split virtqueues).")
@click.option("--once", is_flag=True, help="End when the first guest has gone; otherwise Ctrl-C ends it.")
def serve(device: str, size: str | None, queue_size: int | None, once: bool, **options: Any) -> None:
    """A device for somebody's QEMU over vhost-user, its rings shown live."""
    from iosim.serve.command import serve as run_serve

    run_serve(device, size=size, queue_size=queue_size, once=once, **options)


# -- helpers ----------------------------------------------------------------------------------------------------


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the Python function that a command stands for."""
    from iosim.settings import literal, split_pairs

    found: dict[str, Any] = {
        "workload": options["workload"],
        "host": options["host"],
        "settings": split_pairs(options["pairs"], "--set"),
    }
    for name in ("engine", "keep"):
        if options[name] is not None:
            found["settings"] = {**found["settings"], f"run.{name}": options[name]}
    for name in ("requests", "duration", "seed"):
        text = options[name]
        found[name] = None if text is None else literal(text) if name != "duration" else text
    return found


def _whole(text: str | None, option: str) -> int | None:
    """A whole number in any of Python's bases, as addresses are written."""
    if text is None:
        return None
    try:
        return int(text, 0)
    except ValueError:
        raise IosimError(f"'{text}' is no whole number; write it as 4096 or 0x1000", option) from None


def _lines() -> Iterator[str]:
    """Steps typed or piped in, one line after the other."""
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            click.echo("ring> ", nl=False)
        line = sys.stdin.readline()
        if not line or line.strip() in ("quit", "exit"):
            return
        yield line


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise IosimError(f"{workers} workers cannot work; give 1 or more", "--workers")


def _stem(name: str) -> str:
    """The name without one of the suffixes that are put after it."""
    base, suffix = os.path.splitext(name)
    return base if suffix in (".png", ".json", ".parquet") else name


def _print(renderable: Any) -> None:
    from rich.console import Console

    # Where stdout is no terminal there is no width to fit; 100 columns suit a pager and a file.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100
    Console(width=width, highlight=False).print(renderable)


def _wrote(paths: Sequence[Path], as_json: bool) -> None:
    for path in paths:
        click.echo(f"wrote {path}", err=as_json)


@contextmanager
def _progress(what: str, quiet: bool, count: bool = False) -> Iterator[Callable[..., None] | None]:
    """A progress bar on the terminal for whatever takes over two seconds; nothing where stderr is none."""
    import iosim.run as runs

    warnings.showwarning = _show_warning
    if quiet or not sys.stderr.isatty():
        # Nothing animated: one line says why the first run of a path takes a while.
        runs.announce = None if quiet else lambda text: click.echo(f"iosim: {text}", err=True)
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f}" if count else "{task.percentage:.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(what, total=1)

    def fraction(done: float) -> None:
        bar.update(task, completed=done, description=what)

    def points(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    runs.announce = lambda text: bar.update(task, description=text)
    with bar:
        yield points if count else fraction


def _show_warning(message: Warning | str, category: type[Warning], *_where: Any, **_more: Any) -> None:
    """Warnings are lines for people here: no file, no line number, and none of other packages'."""
    if category.__module__.startswith("iosim"):
        click.echo(f"iosim: {message}", err=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; end with status 2 and one line for anything a user can mistype, 130 for Ctrl-C."""
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="iosim", standalone_mode=False)
    except IosimError as error:
        _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        sys.exit(USAGE_ERROR)
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        click.echo("iosim: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe went away (iosim ... | head): nothing more to say, and no traceback at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str) -> None:
    click.echo(f"iosim: {' '.join(message.split())}", err=True)
    sys.exit(USAGE_ERROR)
