"""``qmpalloc vm exec`` and ``vm cp``: programs run in a guest, and files brought into it and out of it."""

from __future__ import annotations

import os
import re
import sys
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

import click

from qmpalloc.cli.options import WaysFile, wait_option
from qmpalloc.cli.signals import run_until_signal
from qmpalloc.errors import ConfigError, HostError, RefusedError
from qmpalloc.files import write_whole
from qmpalloc.units import MIB

if TYPE_CHECKING:
    from qmpalloc.channel import Channel
    from qmpalloc.cli.ways import Ways

COPY_MAX_BYTES = 1024 * MIB
"""A file that is copied is in memory once."""

STDIN_MAX_BYTES = 256 * MIB
COPY_TIMEOUT_S = 60.0
COPY_BYTES_PER_S = 100_000
"""A copy may take so long, and a second for so many bytes; an emulated guest's agent takes 1 to 3 MB/s."""

config_option = click.option(
    "--config",
    "ways",
    type=WaysFile(),
    help="Where the guest is described: a configuration, or an experiment with [guest.attach]. "
    "By default it is one that vm up has started.",
)


@click.command("exec", short_help="Run a program in a guest.")
@click.argument("guest")
@config_option
@wait_option
@click.option("-i", "--stdin", "with_stdin", is_flag=True, help="Give it our standard input, read to its end first.")
@click.argument("argv", nargs=-1, required=True, metavar="-- ARGV...", type=click.UNPROCESSED)
def exec_(guest: str, ways: Ways | None, wait_s: float, with_stdin: bool, argv: tuple[str, ...]) -> None:
    """Run ARGV in GUEST as root, and end with its exit code: 128 and the signal's number if a signal ended it.

    No shell is involved unless ARGV names one. Its output is passed on as it comes, with nothing left out of it; what
    it writes to a terminal is the guest's word. Ctrl-C ends it.

    Through the second agent of the guests that vm up starts, or what `channel` in --config says.
    """
    stdin = _standard_input() if with_stdin else None
    sys.exit(run_until_signal(_exec, guest, ways, wait_s, argv, stdin))


async def _exec(guest: str, ways: Ways | None, wait_s: float, argv: tuple[str, ...], stdin: bytes | None) -> int:
    from qmpalloc.channel import pass_through

    out, err = sys.stdout.buffer, sys.stderr.buffer
    async with _opened(guest, ways, wait_s) as channel:
        return await pass_through(channel, argv, stdin=stdin, out=partial(_pass, out), err=partial(_pass, err))


@click.command(short_help="Copy a file into a guest, or out of one.")
@click.argument("source")
@click.argument("target")
@config_option
@wait_option
def cp(source: str, target: str, ways: Ways | None, wait_s: float) -> None:
    """Copy the file SOURCE to TARGET; one of the two is GUEST:PATH, the path absolute.

    A target that ends in a slash, or is a directory of this host, keeps the file's name. What is copied into a guest
    keeps its mode. 1 GiB at most.
    """
    there, here = _in_guest(source), _in_guest(target)
    if (there is None) == (here is None):
        hint = "for example: qmpalloc vm cp web:/etc/fstab ."
        raise ConfigError("one of SOURCE and TARGET must be GUEST:PATH", key="vm cp", hint=hint)
    if there is not None:
        guest, path = there
        file = Path(target, PurePosixPath(path).name) if _is_directory(target) else Path(target)
        run_until_signal(_fetch, guest, path, file, ways, wait_s)
    elif here is not None:
        guest, path = here
        data, mode = _read(Path(source))
        path = f"{path}{Path(source).name}" if path.endswith("/") else path
        run_until_signal(_bring, data, mode, guest, path, ways, wait_s)


def _is_directory(target: str) -> bool:
    with suppress(OSError):  # which writing to it will tell
        return target.endswith("/") or Path(target).is_dir()
    return False


def _read(source: Path) -> tuple[bytes, int]:
    """Return content and mode of a file that is to be copied."""
    try:
        with source.open("rb") as file:
            status = os.fstat(file.fileno())
            # A device may have no end.
            data = file.read(COPY_MAX_BYTES + 1) if status.st_size <= COPY_MAX_BYTES else b""
    except OSError as error:
        raise HostError(f"{source} cannot be read: {error.strerror}") from error
    if max(status.st_size, len(data)) > COPY_MAX_BYTES:
        raise HostError(f"{source} is larger than {COPY_MAX_BYTES // MIB} MiB", hint="give it a disk")
    return data, status.st_mode & 0o777


async def _bring(data: bytes, mode: int, guest: str, path: str, ways: Ways | None, wait_s: float) -> None:
    from qmpalloc.qmp import deadline

    async with _opened(guest, ways, wait_s) as channel:
        with deadline(COPY_TIMEOUT_S + len(data) / COPY_BYTES_PER_S, channel.address, f"the copy to {path}"):
            await channel.write_file(path, data)
            result = await channel.run(["chmod", f"{mode:o}", path])
    if result.exit_code != 0:
        raise RefusedError(f"guest {guest}: {path} has not got its mode", command="chmod", error_class="GenericError")


async def _fetch(guest: str, path: str, target: Path, ways: Ways | None, wait_s: float) -> None:
    from qmpalloc.qmp import deadline

    async with _opened(guest, ways, wait_s) as channel:
        with deadline(COPY_TIMEOUT_S + COPY_MAX_BYTES / COPY_BYTES_PER_S, channel.address, f"the copy of {path}"):
            data = await channel.read_file(path, COPY_MAX_BYTES)
    if len(data) > COPY_MAX_BYTES:
        raise HostError(f"{guest}:{path} is larger than {COPY_MAX_BYTES // MIB} MiB; nothing was copied")
    _write(target, data)


def _write(target: Path, data: bytes) -> None:
    """Write a file, whole or not at all; what is not one, a device or a link, stays and is written to."""
    try:
        if target.is_symlink() or (target.exists() and not target.is_file()):
            with target.open("wb") as file:
                file.write(data)
            return
    except OSError as error:
        raise HostError(f"{target} cannot be written: {error.strerror}") from error
    write_whole(target, data)


def _opened(guest: str, ways: Ways | None, wait_s: float) -> AbstractAsyncContextManager[Channel]:
    from qmpalloc.channel import open_channel
    from qmpalloc.qemu.channels import way_into_started

    way = ways.into(guest) if ways is not None else way_into_started(guest)
    return open_channel(
        way.channel, guest=guest, agent=way.agent, wait_s=wait_s, report=_report, directory=way.directory
    )


def _in_guest(word: str) -> tuple[str, str] | None:
    """Return guest and path of ``GUEST:PATH``; None for a path of this host."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]+):(.*)", word, re.DOTALL)
    if match is None or word.startswith("."):
        return None
    if not match[2].startswith("/"):
        hint = "a file of this host with a colon in its name is written with ./ before it"
        raise ConfigError(f"{word}: the path in a guest is absolute", key="vm cp", hint=hint)
    return match[1], match[2]


def _standard_input() -> bytes:
    data = sys.stdin.buffer.read(STDIN_MAX_BYTES + 1)
    if len(data) > STDIN_MAX_BYTES:
        raise HostError(f"standard input is longer than {STDIN_MAX_BYTES // MIB} MiB", hint="copy it with vm cp")
    return data


def _pass(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
    stream.flush()


def _report(line: str) -> None:
    click.echo(line, err=True)
