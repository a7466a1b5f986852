"""Clients of fakes, over streams in memory, and what programs in guests leave."""

from contextlib import asynccontextmanager

import trio
from trio.testing import memory_stream_pair

from qmpalloc.qmp import ExecResult, open_agent_on, open_monitor_on


@asynccontextmanager
async def connected(serve, open_on, address="fake"):
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, server)
        async with open_on(client, address=address) as opened:
            yield opened
        nursery.cancel_scope.cancel()


def monitor_of(fake):
    return connected(fake.serve, open_monitor_on)


def agent_of(fake, address="fake"):
    return connected(fake.serve, open_agent_on, address)


def result(code=0, out=b"", err=b"", signal=None):
    return ExecResult(exit_code=code if signal is None else None, signal=signal, out=out, err=err)
