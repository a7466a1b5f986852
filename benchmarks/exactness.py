"""How exact the collector counts, beside the cachestat tools: boots guests, runs known loads in them, writes a table.

    python benchmarks/exactness.py [--suite trixie] [--suite bookworm] [--output runs/exactness.md]
    python benchmarks/exactness.py [--suite trixie] [--suite bookworm] --page-ins runs/exactness_page_ins.csv

Linux 6.12 (Debian 13) with the multi-generational LRU on and off, and Linux 6.1 (Debian 12); ext4 and XFS; all loads of
benchmarks/guest/known_loads.py. bcc's cachestat and that of libbpf-tools run beside the collector all the time, so that
all three see the same loads. Takes some 15 minutes without KVM; the guests of both suites run at once. Ends with status
1 if a count of ours differs from what it must be by more than 0.1 %.

The second form measures page-ins instead: mapped files, swap and zram, by the loads of benchmarks/guest/
known_page_ins.py, beside what QEMU counts of the system's disk and of the swap disk. One guest after the other; some 5
minutes each.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exact_page_ins
import trio

from qmpalloc import config as configuration
from qmpalloc.qemu.launcher import open_guests, prepare
from qmpalloc.qmp import Agent, open_agent

GUEST_SCRIPTS = Path(__file__).with_name("guest")
CONFIGURATION = """
[host]
budget = "1280MiB"
run_dir = "run-{suite}"
[[guest]]
name = "{suite}"
floor = "1280MiB"
cap = "1280MiB"
baseline = "1280MiB"
[guest.vm]
memory = "1280MiB"
cpus = 2
suite = "{suite}"
profile = "bench"
data = {{ size = "512MiB" }}
"""
# The data disk becomes XFS.
SET_UP = (
    exact_page_ins.FAST_COLLECTOR
    + """\
disk=$(findmnt -no SOURCE /data)
umount /data
mkfs.xfs -q -f "$disk"
mount "$disk" /data
# bcc's cachestat as it would be if it hooked the functions that reads call since Linux 5.16.
sed 's/add_to_page_cache_lru/filemap_add_folio/; s/mark_page_accessed/folio_mark_accessed/' \
    /usr/sbin/cachestat-bpfcc >/run/cachestat-corrected
# Debian 13 and 12 name it differently.
ln -sf "$(ls /usr/sbin/cachestat-libbpf /usr/sbin/cachestat 2>/dev/null | head -n 1)" /run/cachestat-libbpf
uname -r
"""
)
SUITES = ["trixie", "bookworm"]
FILE_SYSTEMS = {"/var/tmp": "ext4", "/data": "XFS"}
TOOLS = {
    "bcc": "python3 -u /usr/sbin/cachestat-bpfcc 1",
    "corrected": "python3 -u /run/cachestat-corrected 1",
    "libbpf": "stdbuf -oL /run/cachestat-libbpf 1",
}
TITLES = {"bcc": "bcc cachestat", "corrected": "bcc's with today's function names", "libbpf": "libbpf-tools cachestat"}
LRUS = {"lru_gen": "multi-generational LRU", "two_list": "two-list LRU"}
LIMIT_S = 3000.0
Row = dict[str, Any]


async def run(lab: Agent, script: str) -> str:
    """Run a shell script in the guest and return its output; end the program if it fails."""
    result = await lab.run(["sh", "-c", script])
    if result.exit_code not in (0, 1) or (result.exit_code and not result.out):
        sys.exit(f"in the guest: {result.err.decode(errors='replace')[-2000:]}")
    sys.stderr.write(result.err.decode(errors="replace"))
    return result.out.decode()


async def measure(suite: str, directory: Path) -> list[Row]:
    """Boot a guest of a suite and run all loads in it on both file systems, with each LRU that its kernel has."""
    file = directory / f"{suite}.toml"
    file.write_text(CONFIGURATION.format(suite=suite))
    config = configuration.load(file)
    prepared = await trio.to_thread.run_sync(prepare, config)
    lru = "--lru y --lru n" if suite == "trixie" else ""
    tools = " ".join(f"--tool '{name}={command}'" for name, command in TOOLS.items())
    command = f"python3 -B /run/count_known_loads.py --json {lru} {tools} {' '.join(FILE_SYSTEMS)}"
    async with (
        open_guests(config, prepared=prepared, report=print) as guests,
        open_agent(str(guests[0].lab_socket)) as lab,
    ):
        for script in GUEST_SCRIPTS.glob("*.py"):
            await lab.write_file(f"/run/{script.name}", script.read_bytes())
        with trio.fail_after(LIMIT_S):
            release = (await run(lab, SET_UP)).strip()
            output = await run(lab, command)
    return [{"kernel": release, **row} for row in json.loads(output)]


async def measure_all(suites: list[str], directory: Path, keep: Callable[[str, list[Row]], None]) -> None:
    """Measure in a guest of each suite, at the same time; hand over each suite's counts as soon as they are there."""

    async def one(suite: str) -> None:
        keep(suite, await measure(suite, directory))

    async with trio.open_nursery() as nursery:
        for suite in suites:
            nursery.start_soon(one, suite)


def percent_off(counted: int, expected: int) -> float:
    """Return the error of a count in per cent of what it must be; infinite where nothing is expected."""
    if counted == expected:
        return 0.0
    return abs(counted - expected) / expected * 100 if expected else float("inf")


def expected_hits(row: Row) -> tuple[int, int]:
    """Return what a cachestat ought to say of reads: hits and misses."""
    misses = row["expected"]["inserts_read"]
    return row["expected"]["accesses"] - misses, misses


def is_right(row: Row, tool: str) -> bool:
    """Return whether another tool has hits and misses of reads within 1 % (or 50 pages)."""
    seen = row["tools"][tool]
    return all(
        abs(seen[name] - true) <= max(true / 100, 50)
        for name, true in zip(("hits", "misses"), expected_hits(row), strict=True)
    )


def tool_cell(row: Row, tool: str) -> str:
    """Return hits and misses that another tool reported, bold where they are right."""
    text = f"{row['tools'][tool]['hits']:,} / {row['tools'][tool]['misses']:,}"
    return f"**{text}**" if is_right(row, tool) else text


def our_cell(row: Row) -> str:
    """Return "exact", or every count of ours that differs from what it must be."""
    differences = [
        f"{name} {counted - row['expected'][name]:+,}"
        for name, counted in row["counted"].items()
        if row["expected"][name] is not None and counted != row["expected"][name]
    ]
    return ", ".join(differences) or "exact"


def expected_cell(row: Row) -> str:
    """Return what must be counted, without what must be 0."""
    return ", ".join(f"{name} {count:,}" for name, count in row["expected"].items() if count) or "nothing"


def table(rows: list[Row]) -> list[str]:
    """Return the Markdown of one environment."""
    hits = [f"{hit:,} / {miss:,}" for hit, miss in map(expected_hits, rows)]
    tools = list(rows[0]["tools"])
    lines = [
        f"| load | must be counted | ours | hits / misses of reads | {' | '.join(TITLES[tool] for tool in tools)} |",
        "|---|---|---|---|" + "---|" * len(tools),
    ]
    for row, true in zip(rows, hits, strict=True):
        others = " | ".join(tool_cell(row, tool) for tool in tools)
        lines.append(f"| {row['case']} | {expected_cell(row)} | {our_cell(row)} | {true} | {others} |")
    return lines


def summary(rows: list[Row]) -> str:
    """Return one line on an environment: how many cases each tool got right."""
    worst = max(
        (
            percent_off(count, row["expected"][name])
            for row in rows
            for name, count in row["counted"].items()
            if row["expected"][name]
        ),
        default=0.0,
    )
    lost = sum(row["events_lost"] for row in rows)
    reads = [row for row in rows if row["expected"]["accesses"]]
    others = "".join(
        f" | {sum(is_right(row, tool) for row in reads)} of {len(reads)}"
        if tool in rows[0]["tools"]
        else " | does not run"
        for tool in TITLES
    )
    ours = sum(1 for row in rows if row["right"])
    return f"{ours} of {len(rows)} | {worst:.3g} % | {lost}{others}"


def environments(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Return the rows by kernel, LRU and file system."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["kernel"], LRUS[row["lru"]], FILE_SYSTEMS[row["directory"]]), []).append(row)
    return found


def document(rows: list[Row], preface: str) -> str:
    """Return the whole document: preface, summary, and a table for each environment."""
    found = environments(rows)
    lines = [preface.strip(), "", "## Summary", ""]
    lines += [
        f"| kernel | LRU | files | ours within 0.1 % | worst | events lost | {' | '.join(TITLES.values())} |",
        "|---|---|---|---|---|---|" + "---|" * len(TITLES),
    ]
    lines += [f"| {' | '.join(key)} | {summary(group)} |" for key, group in found.items()]
    for key, group in found.items():
        lines += ["", f"## Linux {key[0]}, {key[1]}, {key[2]}", "", *table(group)]
    return "\n".join(lines) + "\n"


def measure_page_ins(suites: list[str], file: Path) -> int:
    """Measure the page-ins of a guest of each suite, one after the other; return 1 if a count is wrong."""
    right = True
    with tempfile.TemporaryDirectory(prefix="qmpalloc-exactness-") as directory:
        for suite in suites:
            rows = trio.run(exact_page_ins.measure, suite, Path(directory))
            exact_page_ins.write_csv(rows, file)
            right = right and all(row["right"] for row in rows)
    return 0 if right else 1


def main() -> int:
    """Measure the suites asked for and write the document; return 1 if a count of ours is wrong."""
    parser = argparse.ArgumentParser(description="Compare the collector and cachestat with known loads.")
    parser.add_argument("--suite", action="append", choices=SUITES, help="default: both")
    parser.add_argument("--output", type=Path, help="where the tables go, after the text that is there; default: print")
    parser.add_argument(
        "--raw", type=Path, help="keep the counts here as JSON; what it has of other suites is shown too"
    )
    parser.add_argument("--page-ins", type=Path, metavar="CSV", help="measure page-ins, and write them here")
    options = parser.parse_args()
    if options.page_ins is not None:
        return measure_page_ins(options.suite or SUITES, options.page_ins)
    raw: Path | None = options.raw
    found: dict[str, list[Row]] = json.loads(raw.read_text()) if raw is not None and raw.exists() else {}

    def keep(suite: str, rows: list[Row]) -> None:
        found[suite] = rows
        if raw is not None:
            raw.write_text(json.dumps(found))

    with tempfile.TemporaryDirectory(prefix="qmpalloc-exactness-") as directory:
        trio.run(measure_all, options.suite or SUITES, Path(directory), keep)
    rows = [row for suite in SUITES for row in found.get(suite, [])]
    there = options.output.read_text() if options.output is not None and options.output.exists() else "# Exactness\n"
    text = document(rows, there.partition("\n## Summary")[0])
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text)
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
