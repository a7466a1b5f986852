"""What the collector costs, counted in executed instructions where that is possible: boots guests, prints Markdown.

    python benchmarks/cost.py [--suite trixie] [--suite bookworm]

Each suite's guest is booted twice. Once under QEMU's -icount shift=0, where a nanosecond of guest time is an executed
instruction: what the probes and other tools add to a fully cached random 4 KiB read, run times of the programs, the CPU
that a sample takes. Once as guests are always emulated here: seconds from start to the first sample, resident size.

The emulated CPU has no fast string copies (ERMS, FSRM): an emulator would count each copied byte as an instruction, and
make the read, of which we want the share, look longer than it is.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import trio

from qmpalloc import config as configuration
from qmpalloc.qemu.accelerator import Accelerator
from qmpalloc.qemu.architecture import Architecture
from qmpalloc.qemu.launcher import open_guests, prepare
from qmpalloc.qmp import open_agent

GUEST_SCRIPT = Path(__file__).with_name("guest") / "collector_cost.py"
CONFIGURATION = """
[host]
budget = "1GiB"
run_dir = "run"
[[guest]]
name = "cost"
floor = "1GiB"
cap = "1GiB"
baseline = "1GiB"
[guest.vm]
memory = "1GiB"
suite = "{suite}"
profile = "bench"
accelerator = "tcg"
"""
LIMIT_S = 2400.0
Result = dict[str, Any]


class CountedInstructions(Accelerator, frozen=True):
    """Emulation in which virtual time is the number of executed instructions."""

    def options(self, architecture: Architecture) -> list[tuple[tuple[str, ...], str]]:  # noqa: ARG002
        """Return the options of the command line of an amd64 guest, each with its reason."""
        return [
            (("-accel", "tcg,thread=single"), "instructions can be counted on one thread only"),
            (("-icount", "shift=0"), "an instruction takes a nanosecond"),
            (("-cpu", "max,erms=off,fsrm=off"), "no instruction that copies a whole page"),
        ]


async def measure(suite: str, directory: Path, *, counted: bool) -> Result:
    """Boot a guest and return what it measured of itself."""
    file = directory / f"{suite}.toml"
    file.write_text(CONFIGURATION.format(suite=suite))
    config = configuration.load(file)
    prepared = await trio.to_thread.run_sync(prepare, config)
    if counted:
        counting = CountedInstructions(name="tcg", reason="to count", forced=True)
        prepared = msgspec.structs.replace(prepared, accelerators={"cost": counting})
    async with (
        open_guests(config, prepared=prepared, report=lambda line: print(line, file=sys.stderr)) as guests,
        open_agent(str(guests[0].lab_socket)) as lab,
    ):
        await lab.write_file("/run/collector_cost.py", GUEST_SCRIPT.read_bytes())
        with trio.fail_after(LIMIT_S):
            result = await lab.run(["python3", "-B", "/run/collector_cost.py", *(["--reads"] if counted else [])])
    if result.exit_code:
        sys.exit(f"in the guest: {result.err.decode(errors='replace')[-2000:]}")
    return dict(json.loads(result.out))


def reads_table(reads: dict[str, Any]) -> list[str]:
    """Return what a cached read takes with nothing attached, with the collector, and with other tools."""
    none = (reads["none"] + reads["none again"]) / 2
    lines = ["| cached random 4 KiB read (fio, psync) | instructions | more |", "|---|---|---|"]
    lines.append(f"| nothing attached (twice: {reads['none']:,.0f} and {reads['none again']:,.0f}) | {none:,.0f} | |")
    for name in (name for name in reads if not name.startswith("none")):
        if isinstance(reads[name], str):
            lines.append(f"| {name} | does not run on this kernel: {reads[name]} | |")
        else:
            lines.append(f"| {name} | {reads[name]:,.0f} | {reads[name] / none - 1:+.2%} |")
    return lines


def events_table(collector: dict[str, Result]) -> list[str]:
    """Return how long the programs run for each page."""
    lines = ["| event, of one page | sampling | programs that run | their instructions |", "|---|---|---|---|"]
    for event in next(iter(collector.values()))["events"]:
        for variant, figures in collector.items():
            cost = figures["events"][event]
            lines.append(f"| {event} | {variant} | {cost['runs']:.2f} | {cost['ns']:,.0f} |")
    return lines


def facts_table(variant: str, counted: Result, plain: Result) -> list[str]:
    """Return start, idle cost and memory of the collector."""
    ours, timed = counted["collector"][variant], plain["collector"][variant]
    idle, start = timed["idle"], timed["start"]
    first_s = start["first_sample_ns"] / 1e9

    def millions(value: float) -> str:
        return f"{value / 1e6:,.1f} million"

    return [
        f"| {variant} | emulated, in time | in instructions |",
        "|---|---|---|",
        f"| start to counting | {start['counting_ns'] / 1e9:.1f} s | {millions(ours['start']['counting_ns'])} |",
        f"| start to the first sample | {first_s:.1f} s | {millions(ours['start']['first_sample_ns'])} |",
        f"| of which loading bcc | {plain['import_ns'] / 1e9:.1f} s | {millions(counted['import_ns'])} |",
        f"| CPU of a sample | {idle['ns_per_sample'] / 1e6:.1f} ms | {millions(ours['idle']['ns_per_sample'])} |",
        f"| CPU when idle | {idle['cpu_percent']:.2f} % | {ours['idle']['cpu_percent']:.3f} % of 10^9 a second |",
        f"| and of DAMON's thread | {idle['damon_percent']:.2f} % | {ours['idle']['damon_percent']:.3f} % |",
        f"| resident | {idle['rss_bytes'] / 1e6:.1f} MB | |",
        f"| counters file | {idle['file_bytes']} bytes | |",
    ]


def document(suite: str, counted: Result, plain: Result) -> str:
    """Return the section of one suite."""
    facts = [facts_table(variant, counted, plain) for variant in counted["collector"]]
    sections = [reads_table(counted["reads_ns"]), events_table(counted["collector"]), *facts]
    body = "\n\n".join("\n".join(section) for section in sections)
    return f"## Linux {counted['kernel']} ({suite})\n\n{body}\n"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what the collector costs.")
    parser.add_argument("--suite", action="append", choices=["trixie", "bookworm"], help="default: both")
    parser.add_argument("--raw", type=Path, help="keep the figures here as JSON; those it has are not measured again")
    options = parser.parse_args()
    raw: dict[str, dict[str, Result]] = {}
    if options.raw is not None and options.raw.exists():
        raw = json.loads(options.raw.read_text())
    with tempfile.TemporaryDirectory(prefix="qmpalloc-cost-") as directory:
        for suite in options.suite or ["trixie", "bookworm"]:
            figures = raw.setdefault(suite, {})
            for kind in ("plain", "counted"):
                if kind not in figures:
                    measured = functools.partial(measure, suite, Path(directory), counted=kind == "counted")
                    figures[kind] = trio.run(measured)
                if options.raw is not None:
                    options.raw.write_text(json.dumps(raw))
            print(document(suite, figures["counted"], figures["plain"]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
