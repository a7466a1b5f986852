"""A program under the dashboard, for tests on a real pseudo-terminal: ``live_program.py GUESTS [fail]``.

Feeds the first 20 seconds of a made-up run at once. ``p`` pauses (with ``fail``: raises), ``b`` and ``y`` return.
"""

import os
import signal
import sys

import trio
from synthetic import WALL, run

from qmpalloc.events import ControlChanged
from qmpalloc.tui import Dashboard, run_tui


class Program:
    def __init__(self, fail):
        self.dashboard = Dashboard()
        self.fail = fail
        self.done = trio.Event()
        self.broken = trio.Event()

    def control(self, control, detail):
        self.dashboard.apply(ControlChanged(t=20.5, wall=WALL, control=control, detail=detail))

    def quit(self):
        self.done.set()

    def toggle_pause(self):
        if self.fail:
            self.broken.set()
        else:
            self.control("running" if self.dashboard.control == "paused" else "paused", "key")

    def return_to_baseline(self):
        self.control("returning", "key")

    async def fall(self):
        await self.broken.wait()
        raise RuntimeError("the program failed")

    async def heed_sigterm(self, *, task_status):
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            await anext(signals)
            self.done.set()


async def main():
    program = Program("fail" in sys.argv)
    for event in run(int(sys.argv[1]), 20):
        program.dashboard.apply(event)
    sys.stdout.write(f"PID {os.getpid()}\n")
    sys.stdout.flush()
    async with trio.open_nursery() as nursery:
        await nursery.start(program.heed_sigterm)
        nursery.start_soon(program.fall)

        async def show(*, task_status):
            await run_tui(program.dashboard, controls=program, now=lambda: 20.5, task_status=task_status)

        await nursery.start(show)
        await program.done.wait()
        nursery.cancel_scope.cancel()


trio.run(main, strict_exception_groups=True)
