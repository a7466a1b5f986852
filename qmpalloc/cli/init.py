"""``qmpalloc init``: from QEMUs that run to a configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmpalloc.errors import ConfigError, HostError

if TYPE_CHECKING:
    from qmpalloc.host.qemus import Qemu
    from qmpalloc.proposal import Seen

NO_QEMU_HINT = "start one with a QMP socket, a balloon and the agent's port: README.md shows how"


@click.command()
@click.argument("pids", type=int, nargs=-1, metavar="[PID]...")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write it here.  [default: standard output]")
def init(pids: tuple[int, ...], output: Path | None) -> None:
    """Write a configuration for the QEMUs that run here: yours, as root everybody's, or those with the process ids PID.

    Their command lines are read and their monitors asked; nothing of a guest is changed. Every value has its reason
    beside it. A QEMU that cannot be controlled stands in it as a comment, with the options that it lacks.
    """
    from qmpalloc.cli.signals import run_until_signal
    from qmpalloc.config import parse
    from qmpalloc.host.memory import read_host_memory
    from qmpalloc.proposal import document, propose, survey

    if output is not None and os.path.lexists(output):
        raise ConfigError("exists already", file=str(output), hint="move it away, or write to another file")
    found = run_until_signal(survey, _chosen(pids))
    fit = [guest for guest in found if not guest.lacks]
    left_out = [guest for guest in found if guest.lacks]
    _tell(left_out)
    if not fit:
        raise HostError("no QEMU was found that can be controlled as it is", hint="start it with what it lacks")
    proposal = propose([guest.memory for guest in fit if guest.memory is not None], read_host_memory())
    place = output or Path("lab.toml")
    text = document(fit, proposal, left_out, file=str(place))
    parse(text, file=place.absolute())
    if output is None:
        click.echo(text, nl=False)
        return
    _write(output, text)
    if proposal.idle:
        click.echo(f"note: {proposal.idle}", err=True)
    click.echo(f"{output}: {', '.join(guest.name for guest in fit)}; next: qmpalloc doctor {output}", err=True)


def _chosen(pids: Sequence[int]) -> list[Qemu]:
    """Return the QEMUs that are meant and may be looked at, and tell of those that may not.

    Raises:
        HostError: There is none.
        ConfigError: A process that was named is no QEMU, or another user's.
    """
    from qmpalloc.host.qemus import find_qemus, hides_others

    user = os.geteuid()
    qemus = find_qemus()
    known = {qemu.pid: qemu for qemu in qemus}
    for pid in pids:
        if pid not in known:
            raise ConfigError(f"process {pid} is no QEMU", hint=f"those that run are: {_listed(qemus) or 'none'}")
    wanted = [known[pid] for pid in dict.fromkeys(pids)] if pids else qemus
    own = [qemu for qemu in wanted if user in {0, qemu.uid}]
    foreign = [qemu for qemu in wanted if qemu not in own]
    hint = "run qmpalloc as the user who runs them, or as root"
    if foreign and (pids or not own):
        raise HostError(f"QEMUs of other users: process {_listed(foreign)}", hint=hint)
    if not own:
        hidden = "; this /proc shows no other user's processes (hidepid)" if hides_others() else ""
        raise HostError(f"no QEMU runs here{hidden}", hint=NO_QEMU_HINT)
    if foreign:
        click.echo(f"note: QEMUs of other users are left out: process {_listed(foreign)}; {hint}", err=True)
    return own


def _listed(qemus: Sequence[Qemu]) -> str:
    return ", ".join(str(qemu.pid) for qemu in qemus)


def _tell(left_out: Sequence[Seen]) -> None:
    for guest in left_out:
        click.echo(f"left out: {guest.name} (process {guest.pid})", err=True)
        for lack in guest.lacks:
            click.echo(f"  {lack.what}\n    → {lack.todo}" if lack.todo else f"  {lack.what}", err=True)


def _write(output: Path, text: str) -> None:
    from qmpalloc.files import create

    try:
        with create(output) as file:
            file.write(text.encode())
    except OSError as error:
        raise HostError(f"{output} cannot be written: {error.strerror}") from error
