"""The last part of a report: what went wrong, what is missing, and under which conditions all of it was measured."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from qmpalloc.experiment.analysis.results import Results
from qmpalloc.experiment.report import words
from qmpalloc.experiment.report.markdown import bullets, heading, paragraph, table
from qmpalloc.experiment.report.words import spread
from qmpalloc.experiment.spec.access import Access
from qmpalloc.experiment.spec.schema import AnyPhase, Phase, Specification
from qmpalloc.text import printable
from qmpalloc.units import format_size

WARM_UPS = {
    "read": "every guest read its first file once, in order, before the first trial",
    "none": "none, the caches were cold",
}
COMMAND_CHARS = 120
"""Of a command that are shown; an experiment's file has all."""

TEXT_LIMIT = 1000
"""Characters of a cause or a command that are shown."""


def troubles(results: Results) -> Iterator[str]:
    """Yield the runs that failed, with their causes, and what is missing."""
    failed = [f"{run.arm}, repeat {run.repeat}: {run.failed}" for run in results.failed]
    missing = [f"{run.arm}, repeat {run.repeat}: not run to its end" for run in results.missing]
    for run in (run for run in results.runs if run.counted):
        missing += [f"{run.arm}, repeat {run.repeat}: {note}" for note in run.notes]
    for title, items, none in (
        ("Failed runs", failed, "None."),
        ("What is incomplete", missing, "Nothing: every planned run ended, and no reading is missing."),
    ):
        yield heading(title)
        yield bullets(printable(item, TEXT_LIMIT) for item in items) if items else paragraph(none)


def conditions(results: Results) -> Iterator[str]:
    """Yield where, when, on what and with which settings."""
    spec, manifest = results.specification, results.manifest
    yield heading("Conditions")
    created = datetime.fromtimestamp(manifest.created_wall, UTC)
    shares = [run.controller_cpu_share for run in results.runs if run.counted]
    facts = [
        "The scale is of memory, files, floors, caps and the steps of policies.",
        f"Warm-up: {WARM_UPS[spec.warm_up]}.",
        f"Command: {manifest.command}",
        f"Begun {created:%Y-%m-%d %H:%M} UTC.",
        *(f"At {change}." for change in manifest.changes),
        f"Versions: {_pairs(manifest.versions)}.",
        f"Host: {_pairs(manifest.host)}.",
        f"Accelerator: {_pairs(manifest.accelerator)}.",
        f"Images: {_pairs(manifest.images)}.",
        f"CPU of the controller while the loads ran: {spread(shares, words.percent)} of one core.",
    ]
    facts += [f"Not reset between arms: {line}." for line in spec.not_reset]
    yield bullets(printable(fact, TEXT_LIMIT) for fact in facts)
    yield from _loads(spec)
    sizes = []
    for guest in spec.guests:
        bytes_each = (guest.memory, guest.floor, guest.cap, guest.baseline)
        suite = guest.suite if guest.attach is None else "its own"
        sizes.append((guest.name, *map(format_size, bytes_each), suite, guest.lru or "the kernel's own"))
    headings = ("Guest", "RAM", "Floor", "Cap", "Baseline", "Suite", "LRU")
    yield table("The guests", headings, tuple(sizes))
    arms = []
    for arm in results.arms:
        split = ", ".join(f"{guest.name} {format_size(arm.baseline(guest))}" for guest in spec.guests)
        arms.append((arm.name, arm.policy, _pairs(arm.settings) or words.NOTHING, split))
    labels = ("Arm", "Policy", "Settings", "Baselines")
    yield table("The arms", labels, tuple(arms), numbers=False)


def _loads(spec: Specification) -> Iterator[str]:
    rows = []
    for guest in spec.guests:
        for phase in guest.reads:
            reads = f"{phase.rounds} of {phase.reads:,}"
            if phase.is_timed:
                reads = f"{phase.reads:,} over and over, {phase.duration:g} s"
            rate = f"{phase.rate:g} per second" if phase.rate else "as fast as it goes"
            ahead = "yes" if phase.reads_ahead else "no"
            rows.append(
                (f"{guest.name}: {phase.name}", describe(phase.access), format_size(phase.file), reads, rate, ahead)
            )
    columns = ("Guest: phase", "Access", "File", "Rounds of reads", "Rate", "Read-ahead")
    if rows:
        yield table("The loads", columns, rows, numbers=False)
    programs = tuple(
        (f"{guest.name}: {phase.name}", printable(describe_phase(phase), TEXT_LIMIT))
        for guest in spec.guests
        for phase in guest.programs
    )
    if programs:
        two = ("Guest: phase", "Command")
        yield table("The programs", two, programs, numbers=False)


def describe_phase(phase: AnyPhase) -> str:
    """Return what a phase does, in a line."""
    length = f" for {phase.duration:g} s" if phase.is_timed else ""
    if isinstance(phase, Phase):
        return f"{phase.total_reads} reads of {format_size(phase.file)}{length}, {describe(phase.access)}"
    metrics = ", ".join(f"{metric.name} ({metric.unit}, {metric.better} is better)" for metric in phase.metrics)
    command = " ".join(shlex.join(phase.command).split())
    return f"{command if len(command) <= COMMAND_CHARS else command[:COMMAND_CHARS] + '…'}{length}" + (
        f": {metrics}" if metrics else ""
    )


def describe(access: Access) -> str:
    """Return an access distribution with its parameters: ``normal, deviation 0.3``."""
    values: dict[str, Any] = msgspec.to_builtins(access)
    name = values.pop("distribution")
    if name == "mixture":
        parts = (f"{part['weight']:g} parts {_parameters(part['access'])}" for part in values["parts"])
        return "mixture of " + "; ".join(parts)
    return _parameters({"distribution": name, **values})


def _parameters(values: Mapping[str, Any]) -> str:
    rest = [f"{key.replace('_', ' ')} {value:g}" for key, value in values.items() if key != "distribution"]
    return ", ".join([str(values["distribution"]), *rest])


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.removesuffix('_bytes')} {_shown(key, value)}" for key, value in values.items())


def _shown(key: str, value: object) -> object:
    """Return a value of a setting or a fact; bytes with a unit for people, also those of a size that was scaled."""
    raw = str(value).removesuffix("B")
    return format_size(int(raw)) if raw.isdecimal() and (raw != str(value) or key.endswith("_bytes")) else value
