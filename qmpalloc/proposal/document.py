"""The configuration of guests that were found, as text with a reason for everything. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import msgspec

from qmpalloc.errors import ConfigError
from qmpalloc.proposal.seen import Lack, Seen
from qmpalloc.proposal.sizes import Proposal, Reasoned, Sizes
from qmpalloc.text import is_visible, one_line
from qmpalloc.units import MIB, format_size

WIDTH = 110
COLUMN = 24


def document(guests: Sequence[Seen], proposal: Proposal, left_out: Sequence[Seen], *, file: str) -> str:
    """Return the file.

    Args:
        guests: Those that can be controlled, in the order of the proposal.
        proposal: Their sizes.
        left_out: Those that cannot, which stand in it as comments.
        file: What it will be called, for the commands it names.

    Raises:
        ConfigError: A socket's path cannot be written in a TOML file.
    """
    lines = [f"# Written by qmpalloc init. Next: qmpalloc doctor {file}; then qmpalloc run {file}"]
    lines += _comment(
        "qmpalloc holds the sockets named here as long as it runs: whoever else opens one then (a manager of machines, "
        "a backup that freezes) waits in vain."
    )
    if proposal.idle:
        lines += _comment(f"Note: {proposal.idle}.")
    lines += [
        "",
        "[host]",
        *_comment(f"For all guests together: {proposal.budget.why}."),
        _size("budget", proposal.budget),
    ]
    for guest, sizes in zip(guests, proposal.guests, strict=True):
        lines += ["", *_table(guest, sizes)]
    for guest in left_out:
        lines += ["", *_comment(f"Left out: {guest.name} (process {guest.pid}), {guest.named}.")]
        lines += _lacks((*guest.lacks, *guest.weak))
    return "\n".join(lines) + "\n"


def _table(guest: Seen, sizes: Sizes) -> Iterator[str]:
    assert guest.memory is not None
    yield "[[guest]]"
    yield from _comment(f"Process {guest.pid}, {guest.program}: {guest.memory.actuator}.")
    if guest.memory.outside_bytes:
        outside = format_size(guest.memory.outside_bytes)
        yield from _comment(f"It has {outside} by virtio-mem besides, which is charged to the budget and not moved.")
    yield from _lacks(guest.weak)
    yield _line("name", guest.name, guest.named)
    yield _line("monitor", guest.monitor)
    yield _line("agent", guest.agent)
    yield _size("floor", sizes.floor)
    yield _size("cap", sizes.cap)
    yield _size("baseline", sizes.baseline)


def _lacks(lacks: Sequence[Lack]) -> Iterator[str]:
    """Yield what is missing; one remedy of several lacks is told once, after them."""
    for number, lack in enumerate(lacks):
        yield from _comment(f"- {lack.what}")
        if lack.todo and (number + 1 == len(lacks) or lacks[number + 1].todo != lack.todo):
            yield f"#   → {one_line(lack.todo)}"  # in one line, to be copied


def _comment(text: str) -> list[str]:
    return textwrap.wrap(one_line(text), WIDTH, initial_indent="# ", subsequent_indent="#   ", break_long_words=False)


def _size(key: str, size: Reasoned) -> str:
    return _line(key, f"{size.size_bytes // MIB}MiB", "" if key == "budget" else size.why)


def _line(key: str, value: str, why: str = "") -> str:
    if not is_visible(value):
        raise ConfigError(f"{one_line(value)} has characters that a configuration cannot show", hint="rename it")
    written = f"{key} = {msgspec.json.encode(value).decode()}"  # a JSON string of such characters is one of TOML
    return f"{written:<{COLUMN}}# {one_line(why)}" if why else written
