"""Stage two: reads the counters every interval and writes the file, until told to stop.

It is started by `collector` through ``exec`` and inherits, by number, the descriptors of the counters, of all programs,
of their attachments, of the lock and, if accesses are sampled, of the ring and of the maps that hold the rate, the
dominant pages and what became of evicted ones; if ages of memory are told, of their map.
"""

from __future__ import annotations

import os
import signal
import time

from guest_agent import ages as damon
from guest_agent import bpf, procfs
from guest_agent.ages import Ages
from guest_agent.counters_file import CountersFile, Series, log, publish
from guest_agent.duty import BURST_MEMORIES, Duty
from guest_agent.ghosts import Ghosts
from guest_agent.sampler import Sampler
from guest_agent.samples import Ring

SLOTS = (
    "accesses_read",
    "accesses_splice",
    "inserts_read",
    "inserts_fault",
    "inserts_write",
    "inserts_other",
    "evictions",
    "scopes_lost",
    "faults",
    "samples_lost",
    "faults_major",
)
"""The members of ``struct counts`` in program.c, in its order."""

COUNTERS = (
    "accesses",
    "inserts_read",
    "inserts_fault",
    "inserts_write",
    "inserts_other",
    "evictions",
    "faults_major",
)
"""What hooks count, by the names of the file."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What makes the collector remove its file and end."""


def combine(slots: dict[str, int], counted: set[str], skipped: int) -> dict[str, int]:
    """Return the counters as the file has them.

    Args:
        slots: Value of each of `SLOTS`.
        counted: Names of the counters whose hooks are attached; the others are left out.
        skipped: Runs of programs that the kernel left out.
    """
    accesses = slots["accesses_read"] + slots["accesses_splice"]
    every = {"accesses": accesses, **slots}
    counters = {name: every[name] for name in COUNTERS if name in counted}
    counters["events_lost"] = slots["scopes_lost"] + skipped
    return counters


def accesses_and_misses(slots: list[int]) -> tuple[int, int]:
    """Return what a duty cycle is told of the values of `SLOTS`."""
    reads, spliced, misses = slots[:3]
    return reads + spliced, misses


def next_tick_ns(tick_ns: int, now_ns: int, interval_ns: int) -> int:
    """Return the first tick after `now_ns` on the grid of `tick_ns`: late ones are left out, not made up for."""
    return tick_ns + interval_ns * max(1, (now_ns - tick_ns) // interval_ns + 1)


def missed_ticks(earlier_ns: int, later_ns: int, interval_ns: int) -> int:
    """Return how many ticks of the grid lie between two of them: for those no file was written."""
    return (later_ns - earlier_ns) // interval_ns - 1


def stopped_before(when_ns: int) -> bool:
    """Wait until then; return True at once when a signal says stop."""
    return signal.sigtimedwait(STOP_SIGNALS, max(0, when_ns - time.monotonic_ns()) / 1e9) is not None


def stopped_in(duty: Duty | None, end_ns: int) -> bool:
    """Do until then what the duty cycle wants; return as `stopped_before`.

    Raises:
        OSError: The program at the end of reads cannot be attached.
    """
    for when_ns, act in duty.steps(end_ns) if duty else ():
        if stopped_before(when_ns):
            return True
        act()
    return stopped_before(end_ns)


def run(
    file: CountersFile,
    series: Series,
    per_cpu: bpf.PerCpuCounters,
    program_fds: list[int],
    counted: set[str],
    sampler: Sampler | None,
    parts: dict[str, Ages | Ghosts],
    duty: Duty | None = None,
) -> None:
    """Write the files every interval until a signal says stop, then remove them; `parts` are what else is told.

    Raises:
        OSError: The counters cannot be read.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    interval_ns = series.interval_ms * 1_000_000
    tick_ns = time.monotonic_ns()
    problem = ""
    while True:
        skipped = sum(map(bpf.recursion_misses, program_fds))
        slots = sampler.step(per_cpu, sampling=duty is None or duty.sampling) if sampler else per_cpu.read()
        counters = combine(dict(zip(SLOTS, slots)), counted, skipped)  # noqa: B905 - Python 3.9 knows no strict
        told = {name: part.read() for name, part in parts.items()}
        if duty:
            counters["accesses"] = duty.end_interval(*accesses_and_misses(slots))
            told["duty"] = duty.part()
        earlier, problem = problem, publish(file, series, counters, parts=told)
        if problem != earlier:
            log(problem or f"{file.path} is written again")
        last_ns, tick_ns = tick_ns, next_tick_ns(tick_ns, time.monotonic_ns(), interval_ns)
        series.intervals_missed += missed_ticks(last_ns, tick_ns, interval_ns)
        if stopped_in(duty, tick_ns):
            file.remove()
            if sampler:
                sampler.remove()
            return


def forget_compiler(descriptors: list[int]) -> None:
    """Drop the compiler's files from the page cache and close them. What another process maps stays.

    Compiling leaves 100 MB of libraries on the active list. A multi-generational LRU prefers them to pages that loads
    read: in a guest of 384 MiB, random reads of a file of 192 MiB hit 54 % beside them, and 100 % without.
    """
    for fd in descriptors:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _names(words: str) -> list[str]:
    return [word for word in words.split(",") if word]


def main(arguments: list[str]) -> int:
    """Run stage two. The arguments are those `collector` passes; people start `collector`."""
    directory, start_id, sequence, interval_ms, counters_fd, *lists = arguments
    program_fds, counted, missing, compiler_fds, sample_fds, aged, duties = lists
    file = CountersFile(directory)
    series = Series(start_id, int(interval_ms), int(sequence), _names(missing))
    forget_compiler([int(fd) for fd in compiler_fds.split(",") if fd])
    bpf.keep_resident()
    try:
        sampler = None
        parts: dict[str, Ages | Ghosts] = {}
        if sample_fds:
            ring_fd, mask_fd, apart_fd, *ghosts_fd = map(int, sample_fds.split(","))
            if ghosts_fd:
                parts["refault_distances"] = Ghosts(*ghosts_fd)
            sampler = Sampler(directory, series, SLOTS, Ring.of_map(ring_fd), mask_fd, bpf.Table(apart_fd))
        if aged:
            parts["ages"] = Ages(*map(int, aged.split(",")))
        programs = [int(fd) for fd in program_fds.split(",")]
        cpus = procfs.cpu_count(procfs.read("/sys/devices/system/cpu/possible"))
        per_cpu = bpf.PerCpuCounters(int(counters_fd), len(SLOTS), cpus)
        duty = None
        if duties:
            share, *fds = duties.split(",")
            duty = Duty(
                bpf.Link(*map(int, fds)), float(share), interval_ns=series.interval_ms * 1_000_000,
                burst=BURST_MEMORIES * os.sysconf("SC_PHYS_PAGES") if sampler else 0,
                read=lambda: accesses_and_misses(per_cpu.read()),
            )  # fmt: skip
        run(file, series, per_cpu, programs, set(_names(counted)), sampler, parts, duty)
    except OSError as error:
        message = f"cannot read the counters: {error}"
        log(message)
        publish(file, series, None, message)
        return 1
    finally:
        if aged:
            damon.stop(directory)
    return 0
