"""``qmpalloc experiment``: compare policies on real guests, go on after an interruption, and report."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmpalloc.cli import EXIT_FAILED, EXIT_INTERRUPTED
from qmpalloc.cli.options import ParamType
from qmpalloc.cli.signals import interruptible
from qmpalloc.errors import ConfigError, HostError

if TYPE_CHECKING:
    from qmpalloc.experiment.run.traces import Traces
    from qmpalloc.experiment.spec.schema import Specification
    from qmpalloc.experiment.store.directory import ExperimentDirectory
    from qmpalloc.qemu.launcher import Prepared


SCALE = re.compile(r"[0-9]{0,9}(\.[0-9]{1,9})?(/[0-9]{1,9})?")
"""More digits, or an exponent, would be a number that takes long to make."""


class Scale(ParamType[Fraction]):
    """A factor, as a fraction or a decimal number."""

    name = "fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Fraction:
        """Return it exactly."""
        if isinstance(value, Fraction):
            return value
        try:
            if not SCALE.fullmatch(value):
                raise ValueError
            return Fraction(value)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is no fraction; for example 1/4", param, ctx)


directory_argument = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
live_option = click.option("--live", is_flag=True, help="Show the dashboard of the arm that is running.")


@click.group()
def experiment() -> None:
    """Compare policies on real guests, with the statistics. Format of FILE: docs/experiments.md."""


@experiment.command(short_help="Run every arm and repeat, and report.")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--scale", "factor", type=Scale(), default="1", help="Scale memory, files, floors and steps, e.g. 1/4.")
@click.option("--repeats", type=click.IntRange(min=1), help="Instead of the file's.")
@click.option("--arms", metavar="A,B", default="", help="Only these.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory for everything. [default: runs/NAME-TIME]")
@click.option("--dry-run", is_flag=True, help="Check everything and show what would be run; boot nothing.")
@live_option
def run(
    file: Path, factor: Fraction, repeats: int | None, arms: str, out: Path | None, dry_run: bool, live: bool
) -> None:
    """Run the experiment that FILE describes: every arm, every repeat, on guests booted for each.

    Ends with a report in DIR. Ctrl-C stops the guests and keeps what is finished: 'qmpalloc experiment resume DIR'.
    """
    from qmpalloc.config.toml import read_text
    from qmpalloc.experiment.run.preflight import preflight
    from qmpalloc.experiment.run.runner import describe, prepare_experiment
    from qmpalloc.experiment.run.traces import Traces
    from qmpalloc.experiment.spec.parsing import parse
    from qmpalloc.experiment.spec.places import warnings
    from qmpalloc.experiment.spec.plan import planned
    from qmpalloc.experiment.spec.scaling import scale
    from qmpalloc.experiment.store.directory import ExperimentDirectory, chosen

    text = read_text(file, example="see {examples}/ for an experiment")  # once: it may be edited meanwhile
    given = parse(text, file=file.absolute())
    wanted = tuple(dict.fromkeys(name.strip() for name in arms.split(",") if name.strip()))
    if arms and not wanted:
        raise click.BadParameter("names no arm", param_hint="--arms")
    specification = chosen(scale(given, factor), repeats=repeats or given.repeats, arms=wanted)
    runs = planned(specification, arms=wanted)
    say(f"{specification.name} at scale {specification.scale}: {len(runs)} runs")
    for warning in warnings(specification):
        say(f"warning: {warning}")
    directory = out or _default_directory(specification)
    ExperimentDirectory.check_new(directory)
    if dry_run:
        _show_plan(specification, [found.name for found in runs])
        preflight(specification)
        return
    with interruptible():
        prepared = prepare_experiment(specification, report=say)
    traces = Traces(specification)
    say("making the references of the loads")
    footprints = traces.footprints()
    manifest = describe(specification, prepared, footprints, arms=wanted, command=_command())
    made = ExperimentDirectory.create(directory, specification, manifest, text)
    traces.specification = made.specification
    with _alone_in(directory):
        sys.exit(_conduct(made, prepared, traces, live))


@experiment.command(short_help="Go on with what is interrupted or failed.")
@directory_argument
@click.option(
    "--anyway",
    is_flag=True,
    help="Also with other images, another QEMU or qmpalloc, or on another host; the report says so.",
)
@click.option("--repeats", type=click.IntRange(min=1), help="More than it was begun with; the report says so.")
@live_option
def resume(directory: Path, anyway: bool, repeats: int | None, live: bool) -> None:
    """Go on with the experiment in DIR: runs that are finished are kept, interrupted and failed ones are run again."""
    from qmpalloc.experiment.report import write_report
    from qmpalloc.experiment.run.runner import prepare_experiment
    from qmpalloc.experiment.run.traces import Traces
    from qmpalloc.experiment.store.directory import ExperimentDirectory
    from qmpalloc.experiment.store.resumption import at_time

    with _alone_in(directory):
        found = ExperimentDirectory.open_existing(directory)
        before = found.manifest.repeats
        if repeats is not None:
            found.plan_repeats(repeats)
        if not found.left():
            write_report(found)
            say(f"nothing is left to run; report: {directory / 'report.md'}")
            return
        with interruptible():
            prepared = prepare_experiment(found.specification, report=say)
        _note_changes(found, prepared, anyway=anyway)
        if found.manifest.repeats > before:
            text = f"resumed: {found.manifest.repeats} repeats instead of {before}, with the first results known"
            found.note_changes([at_time(text, time.time())])
        sys.exit(_conduct(found, prepared, Traces(found.specification), live))


@experiment.command(short_help="Make the report again.")
@directory_argument
@click.option("--no-figures", is_flag=True, help="Tables and text only.")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json, not the names of the files.")
def report(directory: Path, no_figures: bool, as_json: bool) -> None:
    """Make tables, report and figures again from the records in DIR."""
    from qmpalloc.experiment.analysis.results import load_results
    from qmpalloc.experiment.report import write_report
    from qmpalloc.experiment.store.directory import ExperimentDirectory

    found = ExperimentDirectory.open_existing(directory)
    written = write_report(found, figures=not no_figures)
    if as_json:
        click.echo(next(path for path in written if path.name == "summary.json").read_text(), nl=False)
    else:
        for path in written:
            click.echo(path)
    failed = len(load_results(found).failed)
    if failed:
        which = "1 run that" if failed == 1 else f"{failed} runs that"
        click.echo(f"left out: {which} failed or cannot be used; the report says why", err=True)


def say(line: str) -> None:
    """Print a line of progress at once."""
    click.echo(line)
    sys.stdout.flush()


def _default_directory(specification: Specification) -> Path:
    return Path("runs") / f"{specification.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _command() -> str:
    return shlex.join(["qmpalloc", *sys.argv[1:]])


def _alone_in(directory: Path) -> AbstractContextManager[None]:
    """Keep other processes from running in this directory."""
    from qmpalloc.config import default_run_dir
    from qmpalloc.control.lock import hold_lock

    return hold_lock(str(directory), default_run_dir())


@contextmanager
def _seen_by_other_experiments(directory: ExperimentDirectory) -> Iterator[None]:
    """Let others on this host know that an experiment runs; say and keep it when one does already.

    That is no reason to refuse on a host with many processors, but a reader of the times should know.
    """
    from qmpalloc.config import default_run_dir
    from qmpalloc.control.lock import hold_lock
    from qmpalloc.experiment.store.resumption import at_time

    place = default_run_dir()
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(str(place / "experiment"), place))
        except HostError:
            text = "another experiment ran on this host at the same time, and each may have slowed the other's loads"
            say(f"warning: {text}")
            directory.note_changes([at_time(text, time.time())])
        yield


def _note_changes(directory: ExperimentDirectory, prepared: Prepared, *, anyway: bool) -> None:
    """Say and keep what is other than when the experiment began; refuse what would make its arms incomparable."""
    from qmpalloc.experiment.run.runner import describe
    from qmpalloc.experiment.store.resumption import at_time, changes

    then = directory.manifest
    now = describe(directory.specification, prepared, then.footprints, arms=then.arms, command=then.command)
    found = changes(then, now)
    for change in found:
        say(f"warning: {change.text}")
    decisive = [change.text for change in found if change.decisive]
    if decisive and not anyway:
        message = f"cannot go on, its arms would not be comparable: {'; '.join(decisive)}"
        hint = "run the experiment anew in another directory, or resume it with --anyway"
        raise ConfigError(message, file=str(directory.path), hint=hint)
    if found:
        directory.note_changes([at_time(f"resumed: {change.text}", now.created_wall) for change in found])


def _show_plan(specification: Specification, runs: list[str]) -> None:
    from qmpalloc.experiment.report.conditions import describe_phase
    from qmpalloc.experiment.spec.places import places
    from qmpalloc.experiment.spec.program import ProgramPhase
    from qmpalloc.text import visible
    from qmpalloc.units import format_size

    for guest in specification.guests:
        sizes = f"{format_size(guest.floor)} to {format_size(guest.cap)}, baseline {format_size(guest.baseline)}"
        click.echo(f"  guest {guest.name}: {sizes}")
        for phase in guest.phases:
            click.echo(f"    {phase.name}: {describe_phase(phase)}")
            for place in places(phase) if isinstance(phase, ProgramPhase) and guest.attach is None else ():
                click.echo(f"      {visible(place.path)}: on {place.disk}")
    for line in specification.not_reset:
        click.echo(f"  not reset between arms: {line}")
    click.echo("  order: " + ", ".join(runs))


def _conduct(directory: ExperimentDirectory, prepared: Prepared, traces: Traces, live: bool) -> int:
    """Run what is left, then report on all there is; return the exit code."""
    import trio

    from qmpalloc.cli.conduct_experiment import conduct

    say(f"everything goes to {directory.path}")
    try:
        with _seen_by_other_experiments(directory):
            finished = trio.run(conduct, directory, prepared, traces, live)
    except HostError:
        with suppress(HostError):  # a full disk may be why it was given up
            _report(directory)
        raise
    try:
        with interruptible():
            _report(directory)
    except KeyboardInterrupt:
        say(f"the report is not complete; make it with: qmpalloc experiment report {directory.path}")
        finished = None if finished is None else False
    if finished is None:
        say(f"interrupted; go on with: qmpalloc experiment resume {directory.path}")
        return EXIT_INTERRUPTED
    return 0 if finished else EXIT_FAILED


def _report(directory: ExperimentDirectory) -> None:
    from qmpalloc.experiment.analysis.results import load_results
    from qmpalloc.experiment.report import write_report
    from qmpalloc.experiment.report.metrics import metric_lines

    for line in metric_lines(load_results(directory)):
        say(line)
    for path in write_report(directory):
        if path.name in {"report.md", "report.html"}:
            say(f"report: {path}")
