"""A phase that runs a program in its guest, and the figures by which it is judged."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from qmpalloc.config import Duration, Size
from qmpalloc.config.keys import Found, Name, NameOrNone, command_mistakes, file_name_mistakes
from qmpalloc.units import PAGE_BYTES

METRICS_MAX = 16
"""Of a phase."""

COMMANDS = ("command", "setup", "ready", "warm_up")
"""Keys of a phase that are commands."""

COMMAND = 'for example ["sleep", "60"]'
METRIC_FILE = "a file that the program writes, and the way to the number in it"


class JsonValue(Struct, frozen=True, kw_only=True):
    """A number in a JSON file that the program writes.

    Attributes:
        file: Its path, relative to the directory in which the program runs.
        path: Keys and positions, joined by dots: ``jobs.0.read.iops``.
    """

    file: str
    path: str


class Metric(Struct, frozen=True, kw_only=True):
    """``[[guest.phase.metric]]``: a figure that a phase comes to.

    Attributes:
        name: Unique in its phase.
        unit: Of its values.
        better: Whether more or less of it is better.
        pattern: Regular expression, applied to each line of output; the value is its group ``value``, or its first.
            A group ``unit`` must match `unit`.
        series: Whether every match counts, and the metric is their mean; otherwise it is the last match.
        json: Where the value is, instead of a pattern.
    """

    name: Name
    unit: str
    better: Literal["higher", "lower"]
    pattern: str = ""
    series: bool = False
    json: JsonValue | None = None

    def mistakes(self) -> Found:
        """Yield what is wrong with it."""
        if bool(self.pattern) == (self.json is not None):
            hint = "a pattern for the output, or json = { file = …, path = … }"
            yield "pattern", "a metric has either a pattern or json", hint
        if self.json is not None and self.series:
            yield "series", "a JSON file has one value", "leave it out, or give a pattern"
        if self.json is not None and not (self.json.file and self.json.path):
            yield "json", "neither file nor path may be empty", METRIC_FILE
        if not self.unit or not self.unit.isprintable():
            yield "unit", f"{self.unit!r} is no unit", 'for example "1/s" or "ms"'
        if not self.pattern:
            return
        try:
            found = re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            yield "pattern", f"not a regular expression: {error}", "in TOML, 'single quotes' keep backslashes"
            return
        if not found.groups:
            yield "pattern", "has no group for the number", r"for example 'tps = ([0-9.]+)'"
        elif found.groups > 1 and "value" not in found.groupindex:
            yield "pattern", "has several groups", "call that of the number (?P<value>…), or make the others (?:…)"


class ProgramPhase(Struct, frozen=True, kw_only=True, rename={"metrics": "metric"}):
    """``[[guest.phase]]`` with a `command`: a program that runs in the guest.

    Attributes:
        name: Unique in its guest; by default ``phase1``, ``phase2``, …
        command: Program and arguments.
        setup: Run once, as root, before anything is measured; all guests' at the same time.
        ready: Run after `setup`, again and again until it ends with 0.
        warm_up: Run before `command`; for a guest's first phase before the first trial.
        user: Who runs `ready`, `warm_up` and `command`.
        environment: Of all of these.
        duration: How long the program runs, after which it is ended; 0: until it ends by itself.
        timeout: The longest that a program which ends by itself may run.
        copy: Files beside the experiment's, brought into the directory in which the program runs.
        files: Name to size of files on the data disk, in ``/data``; what is in them looks random.
        metrics: What it is judged by.
    """

    name: NameOrNone = ""
    command: tuple[str, ...]
    setup: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()
    warm_up: tuple[str, ...] = ()
    user: str = "root"
    environment: dict[str, str] = {}
    duration: Duration = Duration(0.0)
    timeout: Duration = Duration(3600.0)
    copy: tuple[str, ...] = ()
    files: dict[str, Size] = {}
    metrics: tuple[Metric, ...] = ()

    @property
    def is_timed(self) -> bool:
        """Whether it takes the same time in every arm."""
        return self.duration > 0

    @property
    def size_key(self) -> str:
        """Its key that says how large its files are."""
        return "files"

    def with_texts(self, change: Callable[[str], str]) -> dict[str, object]:
        """Return commands, user and environment with every text changed, as the guest is told them."""
        argv = {name: [change(word) for word in getattr(self, name)] for name in COMMANDS}
        environment = {name: change(value) for name, value in self.environment.items()}
        return {**argv, "user": self.user, "environment": environment}

    def mistakes(self) -> Found:
        """Yield what cannot be run."""
        for key in COMMANDS:
            yield from command_mistakes(key, getattr(self, key) or (key != "command") * ("true",), COMMAND)
        for name in self.environment:
            if not name or "=" in name:
                yield "environment", f"{name!r} is no name of a variable", 'for example { PGDATABASE = "bench" }'
        if not self.user:
            yield "user", "is empty", "leave it out for root"
        for key, wrong in (("duration", self.duration < 0), ("timeout", self.timeout <= 0)):
            if wrong:
                yield key, "must be above 0", 'for example "60s"'
        for name in self.copy:
            if not _is_beside(name):
                yield "copy", f"{name!r} is not beside the experiment's file", "give a path relative to it"
        if len(self.metrics) > METRICS_MAX:
            yield "metric", f"more than {METRICS_MAX}", "leave some out: the output is kept"
        for name, size_bytes in self.files.items():
            yield from file_name_mistakes("files", name)
            if size_bytes < PAGE_BYTES:
                yield "files", "must be at least a page", 'for example "2GiB"'


def _is_beside(name: str) -> bool:
    return bool(name) and name.isprintable() and not name.startswith("/") and ".." not in name.split("/")


READ_RATE = Metric(name="reads", unit="1/s", better="higher")
"""What a phase of built-in reads is judged by beside programs."""

LATENCY = Metric(name="latency", unit="ms", better="lower")
"""The same where reads come at a rate of their own: how many are done is then how many were asked for."""
