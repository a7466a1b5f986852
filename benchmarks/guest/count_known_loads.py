"""Runs every known load in this guest and prints what it was counted as, by our collector and by other tools.

    python3 count_known_loads.py [--lru y] [--lru n] [--tool NAME=COMMAND] [--json] [DIRECTORY ...]

Each DIRECTORY lies on a file system to test and has room for 110 MiB. Run as root; the collector must be running. The
guest should be idle and have 200 MiB free, or what else runs in it is counted too. A tool is one of the cachestat
family, printing a line of hits and misses every second; it runs the whole time, so that it sees the same loads.

Ends with status 1 if a count of ours differs by more than 0.1 %.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import known_loads
from known_loads import Case, Expected

LRU_SWITCH = Path("/sys/kernel/mm/lru_gen/enabled")
COUNTERS_FILE = Path("/run/qmpalloc/counters.json")
COUNTERS = ("accesses", "inserts_read", "inserts_fault", "inserts_write", "evictions")
TOLERANCE = 0.001
NOISE_PAGES = 16
"""What an idle system may read meanwhile, where nothing is expected."""
TOOL_START_S = 900.0
"""bcc's tools compile kernel headers first."""


def counters() -> dict[str, int]:
    """Return the counters of a file that was begun after this call."""
    earlier = json.loads(COUNTERS_FILE.read_text())["sequence"]
    while True:
        content = json.loads(COUNTERS_FILE.read_text())
        if content["sequence"] >= earlier + 2:
            return {name: content["counters"].get(name, 0) for name in (*COUNTERS, "events_lost")}
        time.sleep(0.02)


class SilentError(Exception):
    """A tool does not report."""


class Tool:
    """A cachestat tool that runs beside, printing the hits and misses of every second.

    Args:
        command: How it is started, with its interval of one second.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._lines: list[tuple[int, int]] = []
        self._said: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            words = line.split()
            with self._changed:
                if len(words) >= 2 and words[0].lstrip("-").isdigit() and words[1].lstrip("-").isdigit():
                    self._lines.append((int(words[0]), int(words[1])))
                else:
                    self._said.append(line.strip())
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, lines: int, timeout_s: float = 30.0) -> int:
        """Wait for so many more lines; return how many there are.

        Raises:
            SilentError: The tool ended or is silent; with what it said last.
        """
        with self._changed:
            wanted = len(self._lines) + lines
            self._changed.wait_for(lambda: self._ended or len(self._lines) >= wanted, timeout_s)
            if len(self._lines) < wanted:
                raise SilentError(f"{self._command} does not run here: {' '.join(self._said[-1:])}")
            return len(self._lines)

    def total(self, first: int) -> dict[str, int]:
        """Return the sums since line number `first`."""
        with self._changed:
            lines = self._lines[first:]
        return {"hits": sum(hits for hits, _ in lines), "misses": sum(misses for _, misses in lines)}

    def end(self) -> None:
        """End the tool as a person would."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def differs(counted: int, expected: int | None) -> bool:
    """Return whether a count is further from what it must be than is allowed."""
    if expected is None:
        return False
    return abs(counted - expected) > (TOLERANCE * expected if expected else NOISE_PAGES)


def measure(case: Case, path: Path, tools: dict[str, Tool]) -> dict[str, object]:
    """Run one case and return what was expected and what was counted."""
    if case.cold:
        known_loads.drop(path)
    firsts = {name: tool.wait(1) for name, tool in tools.items()}
    before = counters()
    expected: Expected = {**case.expected, **(case.act(path) or {})}
    after = counters()
    for tool in tools.values():
        tool.wait(2)
    if not case.whole:
        path.unlink(missing_ok=True)
        known_loads.write(path)
    wanted = {name: expected.get(name, 0) for name in COUNTERS}
    counted = {name: after[name] - before[name] for name in COUNTERS}
    return {
        "case": case.name,
        "expected": wanted,
        "counted": counted,
        "right": not any(differs(counted[name], wanted[name]) for name in COUNTERS),
        "events_lost": after["events_lost"] - before["events_lost"],
        "tools": {name: tool.total(firsts[name]) for name, tool in tools.items()},
    }


def measure_all(directory: Path, tools: dict[str, Tool]) -> list[dict[str, object]]:
    """Run all cases on the file system of `directory`."""
    path = directory / "known-loads.dat"
    multi_generational = LRU_SWITCH.exists() and int(LRU_SWITCH.read_text(), 16) & 1
    where = {"directory": str(directory), "lru": "lru_gen" if multi_generational else "two_list"}
    rows = []
    try:
        known_loads.write(path)
        for case in known_loads.cases():
            row = measure(case, path, tools)
            show(row)
            rows.append(where | row)
    finally:
        path.unlink(missing_ok=True)
    return rows


def show(row: dict[str, object]) -> None:
    """Print one case for people: counted/expected, an exclamation mark where they differ."""
    counted, expected = row["counted"], row["expected"]
    assert isinstance(counted, dict)
    assert isinstance(expected, dict)
    cells = [
        f"{counted[name]:>7}/{'any' if expected[name] is None else expected[name]:<6}"
        + ("!" if differs(counted[name], expected[name]) else " ")
        for name in COUNTERS
    ]
    print(f"{row['case']:<34}", *cells, f"lost {row['events_lost']}", row["tools"] or "", flush=True, file=sys.stderr)


def keep_resident() -> None:
    """Keep Python itself in memory: its own pages, faulted in during a case, would be counted, and rightly so."""
    mcl_current = 1  # not MCL_FUTURE: the loads map files themselves
    ctypes.CDLL(None).mlockall(mcl_current)


def main() -> int:
    """Run all cases; return 1 if a count of ours is wrong."""
    parser = argparse.ArgumentParser(description="Compare what the collector counts with known loads.")
    parser.add_argument("directory", type=Path, nargs="*", help="where to put the test file (/var/tmp)")
    parser.add_argument("--lru", action="append", choices="yn", help="switch the multi-generational LRU on or off")
    parser.add_argument("--tool", action="append", default=[], metavar="NAME=COMMAND", help="a cachestat to run beside")
    parser.add_argument("--json", action="store_true", help="print all results as JSON on standard output")
    options = parser.parse_args()
    if not COUNTERS_FILE.exists():
        sys.exit(f"{COUNTERS_FILE} is not there: start the collector first")
    keep_resident()
    tools = {name: Tool(command) for name, _, command in (text.partition("=") for text in options.tool)}
    rows = []
    try:
        for name, tool in list(tools.items()):
            try:
                tool.wait(2, TOOL_START_S)
            except SilentError as error:
                print(error, file=sys.stderr)
                tools.pop(name).end()
        for lru in options.lru or [None]:
            if lru is not None:
                LRU_SWITCH.write_text(lru)
            for directory in options.directory or [Path("/var/tmp")]:
                rows += measure_all(directory, tools)
    finally:
        for tool in tools.values():
            tool.end()
    if options.json:
        print(json.dumps(rows))
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
