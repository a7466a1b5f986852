"""How right it is what is believed of mapped files: learnt at one size, page-ins measured at others. Real guests.

    python benchmarks/mapped_curves.py [--csv FILE] [normal|zipf|mixed|around ...]

A guest of 768 MiB touches pages of a mapped file of 256 MiB at a rate of its own, with madvise(MADV_RANDOM), so that a
fault brings in one page; `around` is `normal` without, where one brings in up to 32. Told is how many pages it brings
in for each touch. It touches every page once; then sizes go from the smallest to the largest. At `LEARN_MIB` it is
learnt how far pages had gone that came back (`qmpalloc.returns`), which predicts the larger sizes, and what age tells
(`qmpalloc.idle`), which bounds the smaller one. Errors are by touch; of `around`, shares of what is brought in at
`LEARN_MIB`. Takes about 8 minutes a load.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import click
import numpy as np
import trio
from msgspec import Struct

from qmpalloc import config as configuration
from qmpalloc.control.handle import GuestHandle, open_guest
from qmpalloc.errors import SampleError
from qmpalloc.idle import IdleMemory, idle_memory
from qmpalloc.qemu.launcher import RunningGuest, open_guests, prepare
from qmpalloc.qmp import deadline, open_agent
from qmpalloc.returns import Returns, ReturnsTracker
from qmpalloc.units import MIB

LOADS = {name: (name, "random") for name in ("normal", "zipf", "mixed")} | {"around": ("normal", "")}
SIZES_MIB = (240, 256, 288, 320, 384)
LEARN_MIB = 256
RATE = 1500
SETTLE_S, MEASURE_S = 30.0, 40.0
LOAD = Path(__file__).with_name("guest") / "mapped_load.py"
CONFIG = """
[host]
budget = "1GiB"
run_dir = "{run_dir}"
[[guest]]
name = "maps"
floor = "192MiB"
cap = "768MiB"
baseline = "512MiB"
[guest.vm]
memory = "768MiB"
suite = "{suite}"
data = {{ size = "300MiB", files = {{ "load.dat" = "256MiB" }} }}
"""


class Seen(Struct, frozen=True, kw_only=True):
    """What happened at a size.

    Attributes:
        size_mib: The size.
        page_ins_per_s: Pages brought in by faults and reads.
        returns: How far those had gone that came back.
        idle: Ages of memory.
        pages_per_fault: Pages that a major fault brought in.
    """

    size_mib: int
    page_ins_per_s: float
    returns: Returns | None
    idle: IdleMemory | None
    pages_per_fault: float


async def watch(guest: GuestHandle, size_mib: int) -> Seen:
    """Bring the guest to a size, let it settle, and watch it."""
    await guest.set_target(size_mib * MIB)
    await trio.sleep(SETTLE_S)
    tracker, pages, seconds, faults, faulted = ReturnsTracker(), 0, 0.0, 0, 0
    while seconds < MEASURE_S:
        try:
            accepted = await guest.next_delta()
        except SampleError:
            continue
        if (delta := accepted.delta) is not None:
            tracker.observe(delta, await guest.size_bytes())
            pages += (delta.inserts_fault or 0) + (delta.misses or 0)
            faults, faulted = faults + (delta.faults_major or 0), faulted + (delta.inserts_fault or 0)
            seconds += delta.interval_s
    return Seen(
        size_mib=size_mib, page_ins_per_s=pages / seconds, returns=tracker.returns, idle=idle_memory(accepted.sample),
        pages_per_fault=max(1.0, faulted / max(1, faults)),
    )  # fmt: skip


def predicted(learnt: Seen, size_mib: int) -> float | None:
    """Return the page-ins per second at a size, by what was seen at another one; None where nothing is known."""
    change = np.array([abs(size_mib - learnt.size_mib) * float(MIB)])
    if size_mib >= learnt.size_mib and learnt.returns is not None:
        here, most = learnt.page_ins_per_s, learnt.page_ins_per_s
        saved = learnt.returns.saved_by_faults(change, most) + learnt.returns.saved_by_reads(change, most)
        return max(0.0, here - float(saved[0]))
    if size_mib < learnt.size_mib and learnt.idle is not None:
        return learnt.page_ins_per_s + learnt.pages_per_fault * float(learnt.idle.unread_per_s(change)[0])
    return None


async def measure(name: str, running: RunningGuest, rows: list[dict[str, object]]) -> None:
    """Run a load through all sizes, and print a line for each."""
    kind, advice = LOADS[name]
    assert running.lab_socket is not None
    async with open_agent(str(running.lab_socket)) as lab:
        with deadline(120.0, lab.address, "starting the load"):
            await lab.write_file("/root/load.py", LOAD.read_bytes())
            command = f"exec python3 /root/load.py /data/load.dat 256 {kind} {RATE} {advice} > /root/load.out"
            await lab.start(["/bin/sh", "-c", command])
            await lab.run(["sh", "-c", "until [ -s /root/load.out ]; do sleep 1; done"])
        sockets = running.sockets
        async with open_guest(str(sockets.monitor), str(sockets.agent), timeout_s=60.0) as guest:
            seen = [await watch(guest, size_mib) for size_mib in SIZES_MIB]
        with deadline(60.0, lab.address, "reading what the load made"):
            made, due = (await lab.read_file("/root/load.out", 1 << 20)).split(b"\n")[-2].split()
    kept = int(made) / max(1, int(due))
    learnt = next(each for each in seen if each.size_mib == LEARN_MIB)
    errors = []
    for each in seen:
        guess, ratio = predicted(learnt, each.size_mib), each.page_ins_per_s / RATE
        said = None if guess is None else round(guess / RATE, 4)
        rows.append(
            {
                "load": name,
                "size_mib": each.size_mib,
                "measured": round(ratio, 4),
                "predicted": said,
                "made": round(kept, 3),
            }
        )
        click.echo(f"| {name} | {each.size_mib} | {ratio:.3f} | {'' if said is None else f'{said:.3f}'} | {kept:.2f} |")
        if said is not None and each.size_mib > LEARN_MIB:
            errors.append(abs(said - ratio) / max(1.0, learnt.page_ins_per_s / RATE))
    if errors:
        click.echo(f"{name}: mean absolute error at the larger sizes {np.mean(errors):.4f}")


@click.command()
@click.option("--csv", "output", type=click.Path(path_type=Path, dir_okay=False), help="Where the table goes as well.")
@click.option("--suite", type=click.Choice(["trixie", "bookworm"]), default="trixie", show_default=True)
@click.argument("names", metavar="[normal|zipf|mixed|around ...]", nargs=-1, type=click.Choice(list(LOADS)))
def main(output: Path | None, suite: str, names: tuple[str, ...]) -> None:
    """Boot a guest for each load, and print a table."""
    click.echo("| load | MiB | page-ins by touch | predicted | touches made of those due |\n|---|---|---|---|---|")
    rows: list[dict[str, object]] = []
    for name in names or tuple(LOADS):
        with tempfile.TemporaryDirectory(prefix="mapped-") as directory:
            text = CONFIG.format(run_dir=f"{directory}/run", suite=suite)
            loaded = configuration.parse(text, file=Path(directory) / "mapped.toml")
            prepared = prepare(loaded)

            async def run() -> None:
                async with open_guests(loaded, prepared=prepared) as guests:  # noqa: B023 - run in this turn
                    await measure(name, guests[0], rows)  # noqa: B023

            trio.run(run)
        if output is not None:
            with output.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
