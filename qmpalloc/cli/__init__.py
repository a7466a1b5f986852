"""Commands: one small module each, imported when it is called, so that ``--help`` answers at once.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 130 interrupted. A standard output that does not take what is
written to it is a failure too: see `qmpalloc.cli.streams`.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from qmpalloc import __version__
from qmpalloc.cli import streams
from qmpalloc.errors import ConfigError, HostError, QmpallocError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

SHOWN_CHARS = 1000
"""Of each line of an error."""

_errors_as_json = False
"""As what the command prints, with ``--json``."""


class Entry(NamedTuple):
    """Where a command is (``module:attribute``), and what it does in one line."""

    target: str
    help: str


COMMANDS = {
    "demo": Entry("qmpalloc.cli.demo:demo", "Two guests with loads, memory moved between them, live."),
    "image": Entry("qmpalloc.cli.image:image", "Build and list images of the reference guest."),
    "vm": Entry("qmpalloc.cli.vm:vm", "Start, list and stop guests of a configuration."),
    "guest": Entry("qmpalloc.cli.guest:guest", "Bring the collector into guests, or take it out."),
    "init": Entry("qmpalloc.cli.init:init", "Write a configuration for the QEMUs that run here."),
    "doctor": Entry("qmpalloc.cli.doctor:doctor", "Check this host and the guests of a configuration."),
    "watch": Entry("qmpalloc.cli.watch:watch", "Show guests and change nothing."),
    "run": Entry("qmpalloc.cli.run:run", "Share memory among guests by a policy."),
    "top": Entry("qmpalloc.cli.top:top", "Show a run that goes on elsewhere, live."),
    "status": Entry("qmpalloc.cli.status:status", "Print the state of a run once."),
    "set": Entry("qmpalloc.cli.steer:set_size", "Give a guest of a run a size."),
    "hold": Entry("qmpalloc.cli.steer:hold", "Keep a guest of a run at its size."),
    "release": Entry("qmpalloc.cli.steer:release", "Leave a guest to the policy again."),
    "pause": Entry("qmpalloc.cli.steer:pause", "Pause a run's control."),
    "resume": Entry("qmpalloc.cli.steer:resume", "Let a run's control go on."),
    "plan": Entry("qmpalloc.cli.plan:plan", "Show what one decision would be."),
    "experiment": Entry("qmpalloc.cli.experiment:experiment", "Compare policies on real guests, and report."),
    "sweep": Entry("qmpalloc.cli.sweep:sweep", "Run a grid in the model and on real guests, on one machine or many."),
    "what-if": Entry("qmpalloc.cli.what_if:what_if", "What other policies would have missed in a recorded run."),
    "replay": Entry("qmpalloc.cli.replay:replay", "Show a record again."),
    "schema": Entry("qmpalloc.cli.schema:schema", "Print the JSON Schema of a TOML file, for editors."),
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
        streams.prepare()
        global _errors_as_json
        _errors_as_json = "--json" in itertools.takewhile(lambda word: word != "--", words)
        debug = "--debug" in itertools.takewhile(lambda word: word.startswith("-"), words)
        try:
            result = invoke()
            code = result if isinstance(result, int) else 0
        except BaseException as error:
            streams.flush()
            code = _told(error, debug=debug)
        failure = streams.flush()
        if failure is not None:
            streams.give_up()
            if not isinstance(failure, BrokenPipeError):  # else whoever read us has gone; say nothing
                show_error(HostError(f"standard output cannot be written: {failure.strerror}"))
            code = EXIT_FAILED
        sys.exit(code)


def _told(error: BaseException, *, debug: bool) -> int:
    """Say what went wrong and return the exit code; raise what is a bug of ours."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else EXIT_FAILED
    # That standard output takes no more is told in the end, whoever noticed it.
    lost = streams.flush()
    leaves = [leaf for leaf in _leaves(error) if leaf is not lost and not isinstance(leaf, BrokenPipeError)]
    if any(isinstance(leaf, (KeyboardInterrupt, click.Abort)) for leaf in leaves):
        return EXIT_INTERRUPTED
    if isinstance(error, click.ClickException):
        if _errors_as_json:
            _echo_error_as_json(error.format_message(), "")
        else:
            error.show()
        return EXIT_USAGE if isinstance(error, click.UsageError) else error.exit_code
    if debug or not all(isinstance(leaf, QmpallocError) for leaf in leaves):
        if lost is not None:
            streams.give_up()
        raise error
    for leaf in leaves:
        assert isinstance(leaf, QmpallocError)
        show_error(leaf)
    return EXIT_USAGE if any(isinstance(leaf, ConfigError) for leaf in leaves) else EXIT_FAILED


def _leaves(error: BaseException) -> Sequence[BaseException]:
    """Return the errors in an exception group, whatever its depth."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def show_error(error: QmpallocError) -> None:
    """Print an error and what to do about it."""
    if _errors_as_json:
        _echo_error_as_json(error.message, error.hint)
        return
    click.echo(f"{click.style('error:', fg='red')} {_shown(error.message)}", err=True, color=_color())
    if error.hint:
        click.echo(f"{click.style('hint:', fg='yellow')} {_shown(error.hint)}", err=True, color=_color())


def _shown(text: str) -> str:
    """Return lines as a terminal may have them: they quote files and guests."""
    from qmpalloc.text import printable

    return "\n".join(printable(line, SHOWN_CHARS) for line in text.split("\n"))


def _echo_error_as_json(message: str, hint: str) -> None:
    import json

    click.echo(json.dumps({"error": message, "hint": hint}), err=True)


def _color() -> bool | None:
    """Return False when the user wants no colour, None to let click look at the terminal (https://no-color.org)."""
    return False if os.environ.get("NO_COLOR") else None


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's signature
    if value and not ctx.resilient_parsing:
        click.echo(f"qmpalloc {__version__}")
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
