"""Do ten dashboards that look on change the controller's times by less than 10 %? Paired, as with a hung guest.

    python benchmarks/controller_watched.py [--guests 16] [--clients 10] [--readers | --scrape] [--pairs 10]
        [--seconds 20] [--interval 1s]

One controller runs all the time and serves its status. In a period of kind B so many ``qmpalloc top`` look on, each a
process that paints on a terminal of 160x50 of its own; in one of kind A nobody does. They take turns, and all is
reported as ``benchmarks/controller_hung.py`` does. The first seconds of a period, in which the dashboards start, belong
to neither kind. A p99 takes many decisions to tell: five a second, 24 pairs (``--interval 200ms --pairs 24``, 26 min).

Dashboards give way to control by their priority (``nice``), which counts for nothing where all of this is started with
``chrt -i 0``, and takes the CPU that the host has not. With ``--readers`` the clients are one process that only reads:
what is seen then is what serving them costs. With ``--scrape`` they are one Prometheus, as it were, that asks for the
metrics once a second; how long it waits for them is told as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import multiprocessing
import os
import pty
import select
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import click
import msgspec
import trio
from controller import configuration_text, serve_guests
from controller_hung import Period, Watch, conduct, report

from qmpalloc import Controller, RecordWriter, load_policy
from qmpalloc import config as configuration
from qmpalloc.control.lock import hold_lock
from qmpalloc.metrics.exporter import Exporter, listen
from qmpalloc.status.feed import Feed
from qmpalloc.status.place import REQUESTS, STATUS, listening, socket_path
from qmpalloc.status.server import Server

SETTLE_S = 12.0
"""Until so many interpreters have started on a busy host."""


class Dashboards:
    """So many processes that look on while it is set."""

    def __init__(self, file: Path, count: int) -> None:
        self._command = [sys.executable, "-m", "qmpalloc", "top", str(file)]
        self._count = count
        self._running: list[tuple[subprocess.Popen[bytes], int]] = []
        self.cpu_s = 0.0

    def set(self) -> None:
        """Start them."""
        for _ in range(0 if self._running else self._count):
            ours, theirs = pty.openpty()
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 50, 160, 0, 0))
            environment = {**os.environ, "TERM": "xterm-256color"}
            process = subprocess.Popen(self._command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
            os.close(theirs)
            threading.Thread(target=self._read, args=(ours,), daemon=True).start()
            self._running.append((process, ours))

    def _read(self, terminal: int) -> None:
        with contextlib.suppress(OSError):
            while os.read(terminal, 65536):
                pass

    def clear(self) -> None:
        """End them."""
        for process, _ in self._running:
            if process.poll() is not None:
                raise RuntimeError("a dashboard has ended by itself")
            process.terminate()
        for process, terminal in self._running:
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
            self.cpu_s += usage.ru_utime + usage.ru_stime
            os.close(terminal)
        self._running = []


def read(paths: list[str]) -> None:
    """Attach to all these sockets and read, until killed."""
    streams = [socket.socket(socket.AF_UNIX) for _ in paths]
    for stream, path in zip(streams, paths, strict=True):
        stream.connect(path)
    while True:
        for stream in select.select(streams, [], [])[0]:
            if not stream.recv(1 << 20):
                raise RuntimeError("the controller has dropped a reader")


def scrape(port: int, waits: Connection) -> None:
    """Ask for the metrics once a second, until killed, and tell how many seconds each took; infinity: none came."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        began = time.monotonic()
        try:
            with opener.open(f"http://127.0.0.1:{port}/metrics") as reply:
                reply.read()
            waits.send(time.monotonic() - began)
        except OSError:  # too busy a host
            waits.send(math.inf)
        time.sleep(max(0.0, began + 1.0 - time.monotonic()))


class Lookers:
    """One process that does what a function does, while it is set."""

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        self._make = partial(multiprocessing.Process, target=function, args=arguments, daemon=True)
        self._process: multiprocessing.Process | None = None
        self.cpu_s = 0.0

    def set(self) -> None:
        """Start it."""
        if self._process is None:
            self._process = self._make()
            self._process.start()

    def clear(self) -> None:
        """End it."""
        if self._process is not None:
            if not self._process.is_alive():
                raise RuntimeError("who looked on has ended by itself")
            self._process.kill()
            self._process.join()
            self._process = None


def measure(
    count: int, clients: int, pairs: int, seconds: float, kind: str, interval: str
) -> tuple[list[Period], float, list[float]]:
    """Return the periods of a run among so many guests, the CPU seconds of all dashboards, and the waits of scrapes."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        os.environ["XDG_RUNTIME_DIR"] = name
        ready = multiprocessing.Event()
        guests = multiprocessing.Process(target=serve_guests, args=(directory, count, 0, ready), daemon=True)
        guests.start()
        stack.callback(guests.kill)
        ready.wait()
        file = directory / "lab.toml"
        file.write_text(configuration_text(count, interval))
        loaded = configuration.load(str(file))
        stack.enter_context(hold_lock(str(file), configuration.default_run_dir()))
        sockets = [
            stack.enter_context(listening(socket_path(str(file), configuration.default_run_dir(), kind)))
            for kind in (STATUS, REQUESTS)
        ]
        watch, feed = Watch(), Feed()
        (listener,) = trio.run(listen, "127.0.0.1", 0)
        waits, theirs = multiprocessing.Pipe(duplex=False)
        status = str(socket_path(str(file), configuration.default_run_dir(), STATUS))
        dashboards: Dashboards | Lookers
        if kind == "dashboards":
            dashboards = Dashboards(file, clients)
        elif kind == "readers":
            dashboards = Lookers(read, [status] * clients)
        else:
            dashboards = Lookers(scrape, listener.socket.getsockname()[1], theirs)
        stack.callback(dashboards.clear)
        record = stack.enter_context(RecordWriter(directory / "record.jsonl"))
        policy = load_policy(loaded.policy, loaded.policy_settings)
        controller = Controller(loaded, policy, watch, record, feed)

        async def run() -> list[Period]:
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(Server(feed, controller).run, *sockets))
                nursery.start_soon(Exporter(feed, controller.tell).serve, [listener])
                periods = await conduct(controller, watch, dashboards, pairs, seconds, SETTLE_S)
                nursery.cancel_scope.cancel()
            return periods

        periods = trio.run(run)
        told = []
        while waits.poll():
            told.append(waits.recv())
        return periods, dashboards.cpu_s, told


@click.command()
@click.option("--guests", default=16, show_default=True)
@click.option("--clients", default=10, show_default=True, help="Dashboards.")
@click.option("--readers", "kind", flag_value="readers", help="They only read, all in one process.")
@click.option("--scrape", "kind", flag_value="scrapes", help="Instead, one process asks for metrics once a second.")
@click.option("--pairs", default=10, show_default=True, help="Pairs of periods.")
@click.option("--seconds", default=20.0, show_default=True, help="Of each period, after it has settled.")
@click.option("--interval", default="1s", show_default=True, help="Between decisions.")
@click.option("--record", type=click.Path(path_type=Path), help="Keep all times, as JSON.")
def main(
    guests: int, clients: int, kind: str | None, pairs: int, seconds: float, interval: str, record: Path | None
) -> None:
    """Measure and print."""
    kind = kind or "dashboards"
    periods, cpu_s, waits = measure(guests, clients, pairs, seconds, kind, interval)
    if record is not None:
        record.write_bytes(msgspec.json.encode(periods))
    alone, watched = ([period for period in periods if period.hung is looked_on] for looked_on in (False, True))
    cycles = sum(len(period.cycles_ms) for period in alone)
    who = "a scrape a second" if kind == "scrapes" else f"{clients} {kind}"
    click.echo(f"{guests} guests, {who}, {pairs} pairs of {seconds:g} s: {cycles} decisions of a kind")
    shares = [sum(period.cpu_s for period in each) / (pairs * seconds) for each in (alone, watched)]
    click.echo(f"CPU of the controller: {shares[0]:.1%} of one core with nobody looking on, {shares[1]:.1%} with them")
    each_s = cpu_s / clients / pairs
    if each_s:
        click.echo(f"CPU of a dashboard: {each_s:.1f} s in {SETTLE_S + seconds:g} s, its start included")
    if waits:
        ordered = sorted(1000 * wait for wait in waits)
        middle, most = ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
        click.echo(f"a scrape: median {middle:.0f} ms, 95 % at most {most:.0f} ms, of {len(ordered)}")
    words = ("with nobody looking on", f"with {who}")
    report("tick to decision", [each.cycles_ms for each in alone], [each.cycles_ms for each in watched], words)
    report("age of samples", [each.ages_ms for each in alone], [each.ages_ms for each in watched], words)


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
