"""Commands: one small module each, imported when it is called, so that ``--help`` answers at once.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.metadata
import io
import itertools
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import click
from msgspec import Struct

from qmpalloc.errors import ConfigError, HostError, QmpallocError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class Entry(Struct, frozen=True):
    """Where a command is (``module:attribute``), and what it does in one line."""

    target: str
    help: str


COMMANDS = {
    "demo": Entry("qmpalloc.cli.demo:demo", "Two guests with loads, memory moved between them, live."),
    "image": Entry("qmpalloc.cli.image:image", "Build and list images of the reference guest."),
    "vm": Entry("qmpalloc.cli.vm:vm", "Start, list and stop guests of a configuration."),
    "doctor": Entry("qmpalloc.cli.doctor:doctor", "Check this host and the guests of a configuration."),
    "watch": Entry("qmpalloc.cli.watch:watch", "Show guests and change nothing."),
    "run": Entry("qmpalloc.cli.run:run", "Share memory among guests by a policy."),
    "plan": Entry("qmpalloc.cli.plan:plan", "Show what one decision would be."),
    "experiment": Entry("qmpalloc.cli.experiment:experiment", "Compare policies on real guests, and report."),
    "replay": Entry("qmpalloc.cli.replay:replay", "Show a record again."),
}


class Program(click.Group):
    """The group of all commands: lazy, and the one place where errors become words and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands in the order in which one meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module and return the command."""
        if cmd_name not in COMMANDS:
            return None
        module_name, _, attribute = COMMANDS[cmd_name].target.partition(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name != module_name:
                raise
            ctx.fail(f"the command {cmd_name} is not part of this installation")
        command = getattr(module, attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; in standalone mode end the process with its exit code."""
        prog_name = prog_name or "qmpalloc"  # also when it runs as python -m

        def invoke() -> Any:
            return super(Program, self).main(args, prog_name, complete_var, standalone_mode=False, **extra)

        if not standalone_mode:
            return invoke()
        words = sys.argv[1:] if args is None else list(args)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal without our signs shows others
        try:
            try:
                result = invoke()
            finally:
                sys.stdout.flush()  # while what goes wrong can still be told
        except BaseException as error:
            _end(error, debug="--debug" in itertools.takewhile(lambda word: word.startswith("-"), words))
        sys.exit(result if isinstance(result, int) else 0)


def _end(error: BaseException, *, debug: bool) -> NoReturn:
    """Say what went wrong and end the process; raise what is a bug of ours."""
    leaves = list(_leaves(error))
    if any(isinstance(leaf, (KeyboardInterrupt, click.Abort)) for leaf in leaves):
        sys.exit(EXIT_INTERRUPTED)
    if isinstance(error, click.ClickException):
        error.show()
        sys.exit(EXIT_USAGE if isinstance(error, click.UsageError) else error.exit_code)
    if isinstance(error, BrokenPipeError):
        # Whoever read us has gone; say nothing.
        _drop_output()
        sys.exit(EXIT_FAILED)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        # Not one of our files, whose errors are told where they are written.
        _drop_output()
        show_error(HostError(f"standard output cannot be written: {error.strerror}"))
        sys.exit(EXIT_FAILED)
    if debug or not all(isinstance(leaf, QmpallocError) for leaf in leaves):
        raise error
    for leaf in leaves:
        assert isinstance(leaf, QmpallocError)
        show_error(leaf)
    sys.exit(EXIT_USAGE if any(isinstance(leaf, ConfigError) for leaf in leaves) else EXIT_FAILED)


def _drop_output() -> None:
    """Let what is still to be written go nowhere, so that Python does not fail when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leaves(error: BaseException) -> Sequence[BaseException]:
    """Return the errors in an exception group, whatever its depth."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def show_error(error: QmpallocError) -> None:
    """Print an error and what to do about it."""
    click.echo(f"{click.style('error:', fg='red')} {error.message}", err=True, color=_color())
    if error.hint:
        click.echo(f"{click.style('hint:', fg='yellow')} {error.hint}", err=True, color=_color())


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a command in order.

    A SIGHUP that whoever started us has had ignored (``nohup``) stays so: what runs is to outlive the terminal.
    """
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return signals[:2] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else signals


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that long work outside of an event loop cleans up after itself."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - signal's signature
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _color() -> bool | None:
    """Return False when the user wants no colour, None to let click look at the terminal (https://no-color.org)."""
    return False if os.environ.get("NO_COLOR") else None


def _version() -> str:
    try:
        return importlib.metadata.version("qmpalloc")
    except importlib.metadata.PackageNotFoundError:
        return "(run from its source, not installed)"


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's signature
    if value and not ctx.resilient_parsing:
        click.echo(f"qmpalloc {_version()}")
        ctx.exit()


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show where an error comes from (before the command).")
@click.option(
    "--follow-umask",
    is_flag=True,
    help="Let your umask say who may read what is left behind, not you alone (before the command).",
)
@click.option(
    "-V", "--version", is_flag=True, callback=_show_version, expose_value=False, is_eager=True, help="Show it."
)
@click.pass_context
def main(ctx: click.Context, debug: bool, follow_umask: bool) -> None:  # noqa: ARG001 - looked at where errors end
    """Share one host's memory among raw QEMU guests so that their page caches save the most disk reads."""
    ctx.color = _color()
    if follow_umask:
        from qmpalloc import files

        files.follow_umask()
