"""What a program prints: what is kept of it, and the values of metrics in it."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from .progress import GaveUpError

KEPT_BYTES = 64 * 1024
"""Of a program's output: so much of its beginning, and so much of its end."""
SAID_BYTES = 1024
"""Of the end of its output, to say why it failed."""
LINE_BYTES = 64 * 1024
"""Of a line that is looked at for metrics; what is beyond is not."""
LINE_SHOWN = 200
JSON_BYTES = 16 * 1024 * 1024
OLD_S = 1_234_567
"""Unix time, of no program's choice, that a JSON file gets before the program runs."""
PRINTED_BYTES = 256 * 1024 * 1024
"""A program that prints more fails: its output is looked at by the line, on the processors that it runs on."""
VALUE_MAX = 1e280
"""Values are smaller, so that the sum of any number of them is a number."""
LOOK_S = 10.0
"""Processor time for metrics in what is read at once: a pattern can take for ever on a line of a hundred letters."""
SERIES_POINTS = 4096
"""Kept of a metric's values at most; where there are more, neighbours become one point, their mean."""


class Series:
    """The values of a metric with their times, in bounded memory."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._each = 1
        self._points: list[tuple[float, float, int]] = []
        """Time of the last value, sum of the values, and how many; `_each` of them in all points but the last."""

    def add(self, value: float) -> None:
        """Take a value of now."""
        self._put((time.monotonic() - self._began_s, value, 1))
        if len(self._points) > SERIES_POINTS:
            points, self._points = self._points, []
            self._each *= 2
            for point in points:
                self._put(point)

    def _put(self, point: tuple[float, float, int]) -> None:
        seconds, total, matches = point
        if self._points and self._points[-1][2] + matches <= self._each:
            _, before, known = self._points.pop()
            total, matches = before + total, known + matches
        self._points.append((seconds, total, matches))

    def lines(self, name: str) -> str:
        """Return a line for each point: name, seconds since the program began, mean value, and of how many."""
        return "".join(
            f"{name},{seconds:.3f},{total / matches:.12g},{matches}\n" for seconds, total, matches in self._points
        )


class Gauge:
    """What a program says of one metric.

    Attributes:
        name: Of the metric.
        count: Values so far; only the last counts unless it is a series.
        series: All of them with their times; None unless it is one.
    """

    def __init__(self, plan: dict[str, Any], key: str) -> None:
        self.name: str = plan["name"]
        self.count = 0
        self._key = key
        self._unit: str = plan["unit"]
        self._pattern = self._compiled(plan["pattern"]) if plan["pattern"] else None
        self._json: dict[str, str] | None = plan["json"]
        self.series = Series() if plan["series"] else None
        self._total = self._last = 0.0

    def _compiled(self, pattern: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern)
        except re.error as error:  # the host's Python may know more
            why = f"Python {platform.python_version()} of this guest does not know it: {error}"
            raise GaveUpError(f"{self._key}.pattern: {why}") from error

    def values(self) -> dict[str, float]:
        """Return what the host reads as ``MetricProgress``."""
        return {"count": self.count, "total": self._total, "last": self._last}

    @property
    def value(self) -> float:
        """What the metric comes to so far, once there is a value."""
        return self._total / self.count if self.series is not None else self._last

    def look(self, line: str) -> None:
        """Look for values in a line of output.

        Raises:
            GaveUpError: What matches is no number, or of another unit.
        """
        if self._pattern is None:
            return
        for match in self._pattern.finditer(line):
            named = match.groupdict()
            unit = named.get("unit")
            if unit is not None and unit != self._unit:
                why = f"the output is in {unit!r}, not {self._unit!r}: {line.strip()[:LINE_SHOWN]!r}"
                raise GaveUpError(f"{self._key}.unit: {why} (have the program print one unit, or a metric for each)")
            self._take(named["value"] if "value" in named else match.group(1), "pattern")

    def too_slow(self) -> NoReturn:
        """End a look that takes too long, from within it."""
        why = f"has not come to an end after {LOOK_S:.0f} s of work on the output"
        raise GaveUpError(f"{self._key}.pattern: {why} (a repetition within a repetition, as in (a+)+, may never end)")

    def mark_file(self, directory: str) -> None:
        """Make a JSON file that is there already an old one, so that it is not taken for the program's."""
        if self._json is not None:
            with suppress(OSError):
                os.utime(Path(directory, self._json["file"]), (OLD_S, OLD_S))

    def look_into_file(self, directory: str) -> None:
        """Read a value from the JSON file.

        Raises:
            GaveUpError: There is none.
        """
        if self._json is None:
            return
        file = Path(directory, self._json["file"])
        try:
            if file.stat().st_mtime == OLD_S:
                raise self._no_file("was there before, and the program has not written it")
            if not file.is_file():  # to open a pipe would be to wait for a writer
                raise self._no_file("is not a file")
            with file.open("rb") as stream:
                data = stream.read(JSON_BYTES + 1)
            if len(data) > JSON_BYTES:
                raise self._no_file(f"is longer than {JSON_BYTES >> 20} MiB")
            value = _at(self._json["path"].split("."), json.loads(data))
        except OSError as error:
            raise GaveUpError(f"{self._key}.json.file: {error.strerror}: {self._json['file']}") from error
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            place, why = f"{self._json['path']} in {self._json['file']}", str(error) or type(error).__name__
            raise GaveUpError(f"{self._key}.json.path: there is no {place}: {why}") from error
        self._take(str(value) if not isinstance(value, bool) else "", "json.path")

    def _no_file(self, why: str) -> GaveUpError:
        assert self._json is not None
        return GaveUpError(f"{self._key}.json.file: {self._json['file']} {why}")

    def require(self, output: Output) -> None:
        """Check that there was a value.

        Raises:
            GaveUpError: There was none.
        """
        if self.count:
            return
        why = f"matches nothing in {output.total_bytes} bytes of output, which end with: {output.said()}"
        hint = "the output is kept with the run; a program that buffers it needs for example stdbuf -oL"
        raise GaveUpError(f"{self._key}.pattern: {why} ({hint})")

    def _take(self, text: str | None, key: str) -> None:
        try:
            value = float((text or "").replace(",", ""))
        except ValueError:
            value, why = math.nan, f"{(text or '')[:LINE_SHOWN]!r} is no number"
        else:
            why = f"the value is {value}, which cannot be compared"
        if not abs(value) < VALUE_MAX:
            hint = " (a narrower pattern leaves such a line out)" if self._pattern is not None else ""
            raise GaveUpError(f"{self._key}.{key}: {why}{hint}")
        self.count += 1
        self._last = value
        self._total += value
        if self.series is not None:
            self.series.add(value)


def _at(words: list[str], value: Any) -> Any:
    """Return what is at a path, joined by dots, which keys may have, too (``percentile.99.000000``)."""
    if not words:
        return value
    if isinstance(value, list):
        return _at(words[1:], value[int(words[0])])
    for length in range(1, len(words) + 1):
        key = ".".join(words[:length])
        if isinstance(value, dict) and key in value:
            return _at(words[length:], value[key])
    raise KeyError(words[0])


class Output:
    """What a program prints, of which the beginning and the end are kept.

    Args:
        path: Where to keep it; None: only what `said` tells is kept.
        gauges: Look at each line.
        key: Of what prints, for an error.

    Attributes:
        total_bytes: Printed so far.
    """

    def __init__(self, path: str | None, gauges: Sequence[Gauge] = (), *, key: str = "") -> None:
        self.total_bytes = 0
        self._key = key
        self._file = Path(path).open("wb", buffering=0) if path is not None else None  # noqa: SIM115 - closed by close()
        self._gauges = gauges
        self._end = bytearray()
        self._line = bytearray()
        self._looking: Gauge | None = None
        if gauges:
            signal.signal(signal.SIGPROF, self._on_overtime)

    def _on_overtime(self, *_: object) -> None:
        if self._looking is not None:
            self._looking.too_slow()

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        signal.setitimer(signal.ITIMER_PROF, LOOK_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._looking = None

    def add(self, data: bytes) -> None:
        """Take what was printed.

        Raises:
            GaveUpError: A metric's value makes no sense, or it is too much.
        """
        room = max(0, KEPT_BYTES - self.total_bytes)
        self.total_bytes += len(data)
        if self._file is not None and room:
            self._file.write(data[:room])
        self._end += data
        if len(self._end) > 2 * KEPT_BYTES:
            del self._end[:-KEPT_BYTES]
        if self._gauges:
            # What shows its progress in one line of a terminal ends each state of it with a carriage return.
            *lines, rest = data.replace(b"\r", b"\n").split(b"\n")
            with self._in_time():
                for line in lines:
                    self._look(line)
            self._line += rest[: LINE_BYTES - len(self._line)]
        if self.total_bytes > PRINTED_BYTES:
            why = f"has printed more than {PRINTED_BYTES >> 20} MiB, which end with: {self.said()}"
            hint = "send to /dev/null what holds no metric: to read it takes the time that the program is to have"
            raise GaveUpError(f"{self._key}: {why} ({hint})")

    def _look(self, rest: bytes) -> None:
        self._line += rest[: LINE_BYTES - len(self._line)]
        line = self._line.decode(errors="replace")
        self._line.clear()
        for gauge in self._gauges:
            self._looking = gauge
            gauge.look(line)

    def close(self) -> None:
        """Look at the last line, and keep the end of what was printed.

        Raises:
            GaveUpError: A metric's value makes no sense.
        """
        if self._file is not None:
            left = self.total_bytes - KEPT_BYTES
            if left > KEPT_BYTES:
                self._file.write(f"\n[{left - KEPT_BYTES} bytes are left out here]\n".encode())
            if left > 0:
                self._file.write(self._end[-min(left, KEPT_BYTES) :])
            self._file.close()
            self._file = None
        if self._line:
            with self._in_time():
                self._look(b"")

    def said(self) -> str:
        """Return the last lines."""
        lines = self._end[-SAID_BYTES:].decode(errors="replace").strip().splitlines()[-3:]
        return " | ".join(lines) or "nothing"
