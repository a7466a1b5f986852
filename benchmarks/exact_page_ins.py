"""The page-ins of benchmarks/exactness.py: steps a guest through known loads, beside QEMU's own counts of its disks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import trio

from qmpalloc import config as configuration
from qmpalloc.qemu.launcher import open_guests, prepare
from qmpalloc.qmp import Agent, Monitor, open_agent, open_monitor
from qmpalloc.units import PAGE_BYTES

GUEST_SCRIPTS = Path(__file__).with_name("guest")
STATE, GO = "/run/known-page-ins.json", "/run/known-page-ins.go"
CONFIGURATION = """
[host]
budget = "1GiB"
run_dir = "run-{suite}"
[[guest]]
name = "{suite}"
floor = "1GiB"
cap = "1GiB"
baseline = "1GiB"
[guest.vm]
memory = "1GiB"
cpus = 2
suite = "{suite}"
profile = "lab"
data = {{ size = "256MiB" }}
"""
FAST_COLLECTOR = """
set -e
unit=/run/systemd/system/qmpalloc-collector.service.d
command="/usr/bin/python3 -IB /usr/local/lib/qmpalloc/guest_agent --interval-ms 100"
mkdir -p $unit
printf '[Service]\\nExecStart=\\nExecStart=%s\\n' "$command" >$unit/interval.conf
systemctl daemon-reload
systemctl restart qmpalloc-collector
"""
"""Has the guest's collector write ten times a second, so that a load does not wait for its counts."""

# The files lie on the system's disk, so that the data disk is the swap device alone.
SET_UP = FAST_COLLECTOR + "umount /data\nuname -r\n"
COLUMNS = (
    "inserts_read", "inserts_fault", "faults_major", "refaults", "refaults_anon",
    "swap_in", "in_zram", "read_ahead", "root_disk", "swap_disk",
)  # fmt: skip
"""What is counted, in pages; the last two by QEMU."""
TOLERANCE, NOISE_PAGES = 0.001, 16
"""What may be counted beside: an idle system reads a page of its own now and then."""
LIMIT_S, STEP_S = 1800.0, 300.0
Row = dict[str, Any]


async def measure(suite: str, directory: Path) -> list[Row]:
    """Boot a guest of a suite and return what each load was counted as, with each LRU that its kernel has on by then.

    Raises:
        RuntimeError: A load cannot be made ready in the guest.
    """
    file = directory / f"page-ins-{suite}.toml"
    file.write_text(CONFIGURATION.format(suite=suite))
    config = configuration.load(file)
    prepared = await trio.to_thread.run_sync(prepare, config)
    flavours = ["--lru", "y", "--lru", "n"] if suite == "trixie" else []
    async with (
        open_guests(config, prepared=prepared, report=print) as (guest,),
        open_agent(str(guest.lab_socket)) as lab,
        open_monitor(str(guest.sockets.people)) as monitor,
    ):
        for script in GUEST_SCRIPTS.glob("*.py"):
            await lab.write_file(f"/run/{script.name}", script.read_bytes())
        with trio.fail_after(LIMIT_S):
            result = await lab.run(["sh", "-c", SET_UP])
            if result.exit_code:
                raise RuntimeError(result.err.decode(errors="replace"))
            swap = "/dev/disk/by-id/virtio-data"
            command = ["python3", "-B", "/run/known_page_ins.py", "--swap", swap, *flavours, "/var/tmp"]
            await lab.write_file(GO, b"")
            pid = await lab.start(command)
            rows = [row async for row in _steps(lab, monitor, pid)]
    return [{"kernel": result.out.decode().strip(), **row} for row in rows]


async def _steps(lab: Agent, monitor: Monitor, pid: int) -> Any:
    step = 0
    while True:
        step += 1
        said = await _state(lab, pid, step, "ready")
        if "finished" in said:
            return
        before = await _disks(monitor)
        await lab.write_file(GO, str(step).encode())
        row = (await _state(lab, pid, step, "row"))["row"]
        after = await _disks(monitor)
        row["counted"] |= {name: after[name] - before[name] for name in after}
        row["right"] = is_right(row)
        outcome = "exact" if not differences(row) else ", ".join(differences(row))
        print(f"{row['lru']:<9}{row['case']:<36}{expected_text(row)}: {outcome}", flush=True)
        yield row
        await lab.write_file(GO, str(-step).encode())


async def _state(lab: Agent, pid: int, step: int, what: str) -> Row:
    """Return what the guest tells when it is as far, or has finished."""
    with trio.fail_after(STEP_S):
        while True:
            ended = await lab.poll(pid)
            try:
                said: Row = json.loads(await lab.read_file(STATE, 1 << 16))
            except Exception:  # not there yet
                said = {"step": 0}
            if "finished" in said or (said["step"] == step and what in said):
                return said
            if "error" in said or ended is not None:
                raise RuntimeError(said.get("error") or (ended.err.decode(errors="replace") if ended else ""))
            await trio.sleep(0.1)


async def _disks(monitor: Monitor) -> dict[str, int]:
    disks = {disk.name: disk.rd_bytes for disk in await monitor.block_stats()}
    return {"root_disk": disks["root"] // PAGE_BYTES, "swap_disk": disks["data"] // PAGE_BYTES}


def differences(row: Row) -> list[str]:
    """Return every count that is not what it must be, in words."""
    expected, counted = row["expected"], row["counted"]
    return [f"{name} {counted[name] - expected[name]:+,}" for name in COLUMNS if counted[name] != expected[name]]


def is_right(row: Row) -> bool:
    """Return whether something had to come back, and no count is further from what it must be than is allowed."""
    expected, counted = row["expected"], row["counted"]
    return any(expected.values()) and all(
        abs(counted[name] - expected[name]) <= max(TOLERANCE * expected[name], NOISE_PAGES) for name in COLUMNS
    )


def expected_text(row: Row) -> str:
    """Return what must be counted, without what must be 0."""
    return ", ".join(f"{name} {row['expected'][name]:,}" for name in COLUMNS if row["expected"][name])


def write_csv(rows: list[Row], file: Path) -> None:
    """Write all that was expected and counted; what the file has of other kernels stays."""
    new = [_flat(row) for row in rows]
    measured = {row["kernel"] for row in new}
    if file.exists():
        with file.open(newline="") as there:
            new = [row for row in csv.DictReader(there) if row["kernel"] not in measured] + new
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(new[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(new)


def _flat(row: Row) -> Row:
    return {
        "kernel": row["kernel"],
        "lru": row["lru"],
        "load": row["case"],
        **{f"must_be_{name}_pages": row["expected"][name] for name in COLUMNS},
        **{f"{name}_pages": row["counted"][name] for name in COLUMNS},
        "events_lost": row["counted"]["events_lost"],
    }
