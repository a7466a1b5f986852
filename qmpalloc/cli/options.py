"""Arguments and options that several commands share, in the words of the configuration file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from qmpalloc import config
    from qmpalloc.cli.ways import Ways

    ParamType = click.ParamType
else:

    class ParamType(click.ParamType):
        """Click's, which is generic for type checkers; older releases are not generic when they run."""

        def __class_getitem__(cls, item: Any) -> type[click.ParamType]:
            return cls


Loaded = TypeVar("Loaded")


class _LoadedFile(ParamType[Loaded]):
    """The path of a file, completed by a shell, loaded and validated here. The group reports its mistakes."""

    name = "config"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Let the shell complete it."""
        return [CompletionItem(incomplete, type="file")]

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002 - click's signature
        ctx: click.Context | None,  # noqa: ARG002
    ) -> Loaded:
        """Load the file, unless that was done."""
        return self.load(value) if isinstance(value, str) else value

    def load(self, path: str) -> Loaded:
        """Return what is in the file."""
        raise NotImplementedError


class ConfigFile(_LoadedFile["config.Config"]):
    """A configuration file."""

    def load(self, path: str) -> config.Config:
        """Return the configuration."""
        from qmpalloc import config

        return config.load(path)


class WaysFile(_LoadedFile["Ways"]):
    """A file that says how programs are run in guests."""

    def load(self, path: str) -> Ways:
        """Return the ways into the guests."""
        from qmpalloc.cli import ways

        return ways.load(path)


class Duration(ParamType[float]):
    """A duration with a unit, as in the configuration file."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        from qmpalloc import units

        try:
            seconds = units.parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds <= 0:
            self.fail("must be above 0", param, ctx)
        return seconds


class Bytes(ParamType[int]):
    """A size with a unit, as in the configuration file."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        from qmpalloc import units

        try:
            return units.parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class HostAndPort(ParamType[tuple[str, int]]):
    """An address of this host and a port: ``127.0.0.1:9177``, ``[::1]:9177``."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Return both."""
        if isinstance(value, tuple):
            return value
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            self.fail(f"{value!r} is not HOST:PORT; write for example 127.0.0.1:9177", param, ctx)
        return host.removeprefix("[").removesuffix("]"), int(port)


config_argument = click.argument("config", type=ConfigFile())
headless_option = click.option(
    "--headless",
    "--plain",
    "headless",
    is_flag=True,
    help="Log lines instead of the dashboard, also on a terminal.",
)


def output_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what a run shows: `output`, a value of `conduct.Output`, or None for the dashboard."""
    lines = click.option("--headless", "--plain", "output", flag_value="lines", help="Log lines, also on a terminal.")
    as_json = click.option("--json", "output", flag_value="json", help="The lines of record.jsonl, as they come.")
    return lines(as_json(function))


duration_option = click.option("--duration", type=Duration(), help="Stop after this time, e.g. 2min.")
wait_option = click.option(
    "--wait", "wait_s", type=Duration(), default="60s", show_default=True,
    help="For an agent that serves somebody else; it serves one after the other.",
)  # fmt: skip
