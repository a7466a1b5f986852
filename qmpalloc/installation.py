"""The collector brought into a guest that runs, and taken out of it, through whatever channel leads there.

What is done in the guest is done by ``guest_agent/install.sh``, which people may run themselves: it checks what the
collector needs, and leaves the guest as it was when it fails. Here it is brought there, run, and watched.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from qmpalloc.channel import Channel
from qmpalloc.errors import HostError, QmpallocError, RefusedError, SampleError
from qmpalloc.qemu.resources import resource_dir
from qmpalloc.qmp import ExecResult, deadline
from qmpalloc.sample import FILE_MAX_BYTES, Sample, parse
from qmpalloc.text import printable

COMMAND_TIMEOUT_S = 60.0
INSTALL_TIMEOUT_S = 720.0
"""A little more than the script itself waits for the collector."""

SAMPLE_TIMEOUT_S = 60.0
"""From the end of the script, after which the collector counts, to a sample."""

CLEAN_TIMEOUT_S = 10.0
POLL_S = 0.5
DIRECTORY = re.compile(r"/tmp/qmpalloc-install\.[A-Za-z0-9]{6,}")
SAID_LINES = 12


def packed_collector() -> bytes:
    """Return the collector's directory as a tar, as `install.sh` wants it beside itself."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in sorted(resource_dir("guest_agent").iterdir()):
            if file.is_file() and file.suffix != ".pyc":
                member = tarfile.TarInfo(f"guest_agent/{file.name}")
                member.size, member.mode = file.stat().st_size, 0o644
                tar.addfile(member, io.BytesIO(file.read_bytes()))
    return packed.getvalue()


async def install(channel: Channel, guest: str, counters_file: str) -> tuple[float, list[str]]:
    """Install the collector in a guest, or update it, and wait for its first sample.

    Args:
        channel: Into the guest, as root.
        guest: Its name, for errors.
        counters_file: Path in the guest.

    Returns:
        Seconds from the start of the installation to the first sample, and what the guest's script noted.

    Raises:
        HostError: Something is missing in the guest, named with its package, or the collector does not count. The guest
            is then as it was.
        QmpallocError: The guest does not answer, or refuses.
    """
    async with _brought(channel, guest) as directory:
        before = await _sample(channel, counters_file)
        began_s = trio.current_time()
        notes = await _script(channel, guest, directory)
        was_there = before is not None
        try:
            await _first_sample(channel, guest, counters_file, before)
        except QmpallocError:
            if not was_there:
                with suppress(QmpallocError):  # the first error says more
                    await _script(channel, guest, directory, "--uninstall")
            raise
        return trio.current_time() - began_s, notes


async def remove(channel: Channel, guest: str) -> str:
    """Take the collector out of a guest, whatever version of it, and return what the guest said.

    Raises:
        QmpallocError: As `install`.
    """
    async with _brought(channel, guest) as directory:
        return " ".join(await _script(channel, guest, directory, "--uninstall"))


@asynccontextmanager
async def _brought(channel: Channel, guest: str) -> AsyncIterator[str]:
    """Bring the collector into a directory of its own in the guest, which is removed at the end."""
    made = await _run(channel, ["/bin/sh", "-c", "umask 077; exec mktemp -d /tmp/qmpalloc-install.XXXXXX"])
    directory = made.out.decode("utf-8", "replace").strip()
    if made.exit_code != 0 or not DIRECTORY.fullmatch(directory):
        raise HostError(f"guest {guest}: no directory can be made in its /tmp: {said(made)}")
    try:
        with deadline(COMMAND_TIMEOUT_S, channel.address, f"bringing the collector into {guest}"):
            await channel.write_file(f"{directory}/collector.tar", packed_collector())
        unpacked = await _run(channel, ["tar", "-C", directory, "-xf", f"{directory}/collector.tar"])
        if unpacked.exit_code != 0:
            raise HostError(f"guest {guest}: the collector cannot be unpacked: {said(unpacked)}")
        yield directory
    finally:
        with trio.move_on_after(CLEAN_TIMEOUT_S, shield=True), suppress(QmpallocError):  # it may be gone
            await channel.run(["rm", "-rf", directory])


async def _script(channel: Channel, guest: str, directory: str, *options: str) -> list[str]:
    """Run the script and return what it noted. `HostError` if it fails."""
    with deadline(INSTALL_TIMEOUT_S, channel.address, f"install.sh in guest {guest}"):
        result = await channel.run(["/bin/sh", f"{directory}/guest_agent/install.sh", *options])
    if result.exit_code != 0:
        hint = "install what is missing in the guest; then again: what fails leaves the guest as it was"
        raise HostError(f"guest {guest}: {said(result)}", hint=hint)
    return [printable(line, 300) for line in result.out.decode("utf-8", "replace").splitlines()[:SAID_LINES]]


async def _first_sample(channel: Channel, guest: str, counters_file: str, before: Sample | None) -> Sample:
    """Wait for a sample of another collector than the one that was there before."""
    with trio.move_on_after(SAMPLE_TIMEOUT_S):
        while True:
            sample = await _sample(channel, counters_file)
            if sample is not None and (before is None or sample.start_id != before.start_id):
                return sample
            await trio.sleep(POLL_S)
    hint = "the collector writes /run/qmpalloc/counters.json; is counters_file of this guest another?"
    raise HostError(f"guest {guest}: no sample in {counters_file} after {SAMPLE_TIMEOUT_S:.0f} s", hint=hint)


async def _sample(channel: Channel, counters_file: str) -> Sample | None:
    """Return the sample that is there now; None: none that can be used."""
    with deadline(COMMAND_TIMEOUT_S, channel.address, counters_file):
        try:
            return parse(await channel.read_file(counters_file, FILE_MAX_BYTES))
        except (RefusedError, SampleError):
            return None


async def _run(channel: Channel, argv: Sequence[str]) -> ExecResult:
    with deadline(COMMAND_TIMEOUT_S, channel.address, argv[0]):
        return await channel.run(argv)


def said(result: ExecResult) -> str:
    """Return the last lines that a program in a guest said, fit for a message."""
    text = (result.err.strip() or result.out.strip()).decode("utf-8", "replace")
    lines = [printable(line, 300) for line in text.splitlines()[-SAID_LINES:]]
    return "\n".join(lines) or f"ended with {result.exit_code} and said nothing"
