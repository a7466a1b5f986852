"""Samples of a real kernel: known pages are read, and exactly the watched ones arrive, each once."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from qmpalloc.curves.samples import FILE_MAX_BYTES, SampleIntake, unpack
from qmpalloc.errors import SampleError
from qmpalloc.qmp import open_agent

BLOCKS = 400  # of 64 pages: 100 MiB
READ = """
import os, random
fd, block, page = os.open("/data/exact.dat", os.O_RDONLY), 64 << 12, 1 << 12
size = os.fstat(fd).st_size
def read(offsets, length):
    for offset in offsets:
        os.pread(fd, length, offset)
pages = range(0, size, page)
{}
os.close(fd)
"""
PASSES = {
    "page by page": "read(pages, page)",
    "4 MiB at once": "read(range(0, size, 4 << 20), 4 << 20)",
    "64 MiB at once": "read([0, 64 << 20], 64 << 20)",
    "at random": "read(random.Random(1).sample(pages, len(pages)), page)",
    "eleven bytes across each boundary": "read([0, *(offset - 5 for offset in pages[1:])], 11)",
    "sendfile": 'os.sendfile(os.open("/dev/null", os.O_WRONLY), fd, 0, size)',
}
SOME = {
    "even pages": "read(pages[::2], page)",
    "odd pages": "read(pages[1::2], page)",
    "blocks 10 to 19": "read(range(10 * block, 20 * block, page), page)",
}


class Guest:
    """A guest's shell, and the samples that the host gets."""

    def __init__(self, agent, lab):
        self.agent, self.lab = agent, lab
        self.intake = SampleIntake()

    async def take(self):
        with suppress(SampleError):  # REPEATED: nothing new yet
            window = self.intake.accept(unpack(await self.agent.read_file("/run/qmpalloc/samples.bin", FILE_MAX_BYTES)))
            if window is not None:
                assert (window.lost, window.shift, window.restarted) == (0, 6, False)
                return window.keys.tolist(), window.accesses
        return [], 0

    async def sampled(self, reads):
        """Return the keys of the sampled accesses of what a program reads, and the exact number of all."""
        keys, accesses = [], 0

        async def run():
            result = await self.lab.run(["python3", "-c", READ.format(reads)])
            assert result.exit_code == 0, result.err
            await trio.sleep(2.2)  # the file is written every second
            nursery.cancel_scope.cancel()

        await self.take()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            while True:
                more_keys, more_accesses = await self.take()
                keys, accesses = keys + more_keys, accesses + more_accesses
                await trio.sleep(0.4)
        return keys, accesses


@pytest.fixture(params=["trixie", pytest.param("bookworm", marks=pytest.mark.long)], scope="module")
def sampled_guest(request, one_guest, prepared_in, run_in_background, tmp_path_factory):
    text = one_guest.replace("[guest.vm]\n", f'[guest.vm]\nsuite = "{request.param}"\n')
    with run_in_background(*prepared_in(text, tmp_path_factory.mktemp(request.param))) as guests:
        yield guests[0]


async def test_exactly_the_watched_pages_arrive(sampled_guest):
    async with (
        open_agent(str(sampled_guest.sockets.agent)) as agent,
        open_agent(str(sampled_guest.lab_socket)) as lab,
    ):
        guest = Guest(agent, lab)
        await guest.sampled("read(pages, page)")  # brings the file in, and Python
        python = set((await guest.sampled(""))[0])
        passes = {name: await guest.sampled(reads) for name, reads in PASSES.items()}
        some = {name: (await guest.sampled(reads))[0] for name, reads in SOME.items()}
    watched = [key for key in passes["page by page"][0] if all(key in keys for keys, _ in passes.values())]
    watched = [key for key in watched if key not in python]
    assert len(watched) == len(set(watched)) == BLOCKS
    assert len({key >> 10 for key in watched}) == BLOCKS
    # At each lower rate one block of every aligned 2, 4, 8, ... is left, not always at the same place.
    for level in range(1, BLOCKS.bit_length()):
        size = 2**level
        whole = [watched[first : first + size] for first in range(0, BLOCKS - size + 1, size)]
        kept = [[index for index, key in enumerate(keys) if key % size == 0] for keys in whole]
        assert all(len(places) == 1 for places in kept), level
        assert len(kept) < 8 or len({place for places in kept for place in places}) > 1, level
    for name, (keys, accesses) in passes.items():
        own = [key for key in keys if key in set(watched)]
        others = len(keys) - len(own)
        assert others < BLOCKS / 4, name
        if name == "at random":
            assert sorted(own) == sorted(watched)
        elif name.startswith("eleven"):
            assert 2 * BLOCKS - 1 <= len(own) <= 2 * BLOCKS, name
        else:
            assert own == watched, name
        pages = 64 * BLOCKS * (2 if name.startswith("eleven") else 1)
        assert pages - 1 <= accesses < pages * 1.25, name
    even, odd = ({key for key in some[name] if key in set(watched)} for name in ("even pages", "odd pages"))
    assert even | odd == set(watched)
    assert not even & odd
    assert min(len(even), len(odd)) > BLOCKS / 4
    assert [key for key in some["blocks 10 to 19"] if key in set(watched)] == watched[10:20]
