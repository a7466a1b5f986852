"""Guests that live as long as a block: started, observed until they answer, and stopped whatever happens.

::

    async with open_guests(config, report=print) as guests:
        ...  # every guest runs, its balloon is at its baseline, its collector counts
    # no QEMU is left

What takes long but needs no guest (images, data disks, the accelerator's probe) is `prepare`, which blocks; call it
before ``trio.run`` and pass its result.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from msgspec import Struct

from qmpalloc.config import Config, GuestConfig, Origin
from qmpalloc.errors import ConfigError, QmpallocError
from qmpalloc.qemu import argv, rundir
from qmpalloc.qemu.accelerator import Accelerator, choose, expected
from qmpalloc.qemu.architecture import named
from qmpalloc.qemu.data_disk import DataDisk, obtain_data_disk, planned_data_disk
from qmpalloc.qemu.host import require
from qmpalloc.qemu.image import Image, obtain_image, planned_image
from qmpalloc.qemu.machine import Machine, RunningGuest, wait_pid
from qmpalloc.qemu.progress import Report, Stopwatch, silent
from qmpalloc.qemu.recipe import Variant
from qmpalloc.qmp import deadline, open_agent

__all__ = [
    "Prepared",
    "RunningGuest",
    "command_lines",
    "open_guests",
    "plan",
    "prepare",
    "start_load",
    "startable",
    "variant_of",
    "wait_for_end",
]

LAB_TIMEOUT_S = 30.0
"""For the lab agent to start a program, in an emulated guest that may be busy."""


class Prepared(Struct, frozen=True, kw_only=True):
    """What guests need before they can start. Keys are names of guests.

    Attributes:
        images: What each boots.
        data_disks: Those that have one.
        accelerators: KVM or emulation.
    """

    images: dict[str, Image]
    data_disks: dict[str, DataDisk]
    accelerators: dict[str, Accelerator]

    @property
    def warnings(self) -> list[str]:
        """What a user should know before trusting numbers, each once."""
        texts = [accelerator.warning for accelerator in self.accelerators.values()]
        texts += [
            f"{disk.file.parent} is on a file system without O_DIRECT: the host's page cache hides disk reads; "
            "set XDG_CACHE_HOME to another file system"
            for disk in self.data_disks.values()
            if not disk.direct
        ]
        return [text for text in dict.fromkeys(texts) if text]


def startable(config: Config) -> tuple[GuestConfig, ...]:
    """Return the guests that qmpalloc starts: those with a ``[guest.vm]`` table.

    Raises:
        ConfigError: There is none, or one cannot be run on this host.
    """
    guests = tuple(guest for guest in config.guests if guest.vm is not None)
    for guest in guests:
        assert guest.vm is not None
        architecture = named(guest.vm.arch)
        if guest.vm.accelerator == "kvm" and not architecture.is_native:
            message = f"KVM runs guests of this host's own architecture, and {guest.name} is {architecture.name}"
            raise _origin(config, guest).error("accelerator", message, hint='accelerator = "auto" emulates it')
    if not guests:
        hint = "add [guest.vm] to a guest, or start your QEMUs yourself and use qmpalloc run"
        raise ConfigError("no guest is to be started by qmpalloc", file=config.file, key="guest", hint=hint)
    return guests


def variant_of(config: Config, guest: GuestConfig) -> Variant:
    """Return which image a guest with a ``[guest.vm]`` table boots."""
    assert guest.vm is not None
    return Variant.of(guest.vm, _origin(config, guest))


def _origin(config: Config, guest: GuestConfig) -> Origin:
    return Origin(config.file, f"guest[{config.guests.index(guest)}].vm")


def prepare(config: Config, *, report: Report = silent) -> Prepared:
    """Build or find images and data disks, and choose accelerators. Blocks; minutes when all is new, else no time.

    Raises:
        ConfigError: No guest has a ``[guest.vm]`` table, or what it names for image and data disk does not work.
        HostError: This host lacks a program, a privilege or room, or a build failed.
    """
    guests = startable(config)
    require([*{named(guest.vm.arch).program: None for guest in guests if guest.vm is not None}, "setpriv"])
    images, data_disks, accelerators = {}, {}, {}
    for guest in guests:
        assert guest.vm is not None
        images[guest.name] = obtain_image(variant_of(config, guest), report=report)
        if guest.vm.data is not None:
            data_disks[guest.name] = obtain_data_disk(guest.vm.data, report=report)
        accelerators[guest.name] = choose(guest.vm.accelerator, images[guest.name])
    return Prepared(images=images, data_disks=data_disks, accelerators=accelerators)


def plan(config: Config) -> Prepared:
    """Return what `prepare` would return, without building or starting anything: paths are where things would be.

    Raises:
        ConfigError: As `prepare`.
    """
    images, data_disks, accelerators = {}, {}, {}
    for guest in startable(config):
        assert guest.vm is not None
        images[guest.name] = planned_image(variant_of(config, guest))
        if guest.vm.data is not None:
            data_disks[guest.name] = planned_data_disk(guest.vm.data)
        accelerators[guest.name] = expected(guest.vm.accelerator, images[guest.name])
    return Prepared(images=images, data_disks=data_disks, accelerators=accelerators)


def command_lines(config: Config, prepared: Prepared, *, detach: bool = False) -> list[argv.CommandLine]:
    """Return the command line of each guest that is to be started."""
    return [_command_line(guest, config, prepared, detach) for guest in startable(config)]


def _command_line(guest: GuestConfig, config: Config, prepared: Prepared, detach: bool) -> argv.CommandLine:
    return argv.build(
        guest,
        image=prepared.images[guest.name],
        data_disk=prepared.data_disks.get(guest.name),
        accelerator=prepared.accelerators[guest.name],
        sockets=argv.sockets_of(guest, Path(config.host.run_dir)),
        die_with_parent=not detach,
    )


@asynccontextmanager
async def open_guests(
    config: Config,
    *,
    prepared: Prepared | None = None,
    wait_for_samples: bool = True,
    detach: bool = False,
    report: Report = silent,
) -> AsyncIterator[tuple[RunningGuest, ...]]:
    """Start the guests of `config` and stop them at the end of the block.

    Each balloon is set to the guest's baseline as soon as QEMU answers, which is before the guest's system boots: no
    guest is above its share for longer than the balloon's driver takes to load.

    Args:
        config: Its guests with a ``[guest.vm]`` table are started, all at once.
        prepared: The outcome of `prepare`; made here in a thread when not given.
        wait_for_samples: Enter the block when every agent answers and every collector counts; otherwise as soon as the
            monitors answer.
        detach: Leave the guests running when the block ends without an error.
        report: Progress lines.

    Raises:
        HostError: A QEMU ended, or a guest was not ready in time; with the last lines of its logs.
        QmpallocError: As `prepare`, or what the monitor said.

    Cancelling stops all guests; that takes at most ten seconds, and nothing is left.
    """
    if prepared is None:
        prepared = await trio.to_thread.run_sync(lambda: prepare(config, report=report))
    for warning in prepared.warnings:
        report(f"warning: {warning}")
    run_dir = Path(config.host.run_dir)
    rundir.prepare_run_dir(run_dir)
    if detach and rundir.ends_at_logout(run_dir):
        report(
            f"warning: {run_dir} is removed when you log out: loginctl enable-linger, or name another [host] run_dir"
        )
    machines: list[Machine] = []
    keep = False
    try:
        for guest in startable(config):
            machine = Machine.start(
                guest,
                _command_line(guest, config, prepared, detach),
                image=prepared.images[guest.name],
                accelerator=prepared.accelerators[guest.name],
                sockets=argv.sockets_of(guest, run_dir),
                config_file=config.file,
                detached=detach,
            )
            machines.append(machine)
        watch = Stopwatch(report)
        running = await _until_ready(machines, watch, wait_for_samples=wait_for_samples)
        yield running
        keep = detach
    finally:
        if not keep:
            # Stopping must not be stopped; it is limited in time by itself.
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    for machine in machines:
                        nursery.start_soon(machine.stop)


async def wait_for_end(guests: tuple[RunningGuest, ...]) -> RunningGuest:
    """Wait until the QEMU of one of the guests ends, and return that guest."""
    ended: list[RunningGuest] = []

    async def wait(guest: RunningGuest, scope: trio.CancelScope) -> None:
        await wait_pid(guest.pid)
        ended.append(guest)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for guest in guests:
            nursery.start_soon(wait, guest, nursery.cancel_scope)
    return ended[0]


async def start_load(guest: RunningGuest) -> int | None:
    """Start the configured load of a guest and return its process id in the guest; None when it has none.

    It runs until it ends by itself or the guest does; nobody waits for it.

    Raises:
        UnreachableError: The lab agent does not answer.
        RefusedError: The program cannot be started.
    """
    vm, socket = guest.config.vm, guest.lab_socket
    if vm is None or not vm.load or socket is None:
        return None
    async with open_agent(str(socket)) as agent:
        with deadline(LAB_TIMEOUT_S, agent.address, "starting the load"):
            return await agent.start(vm.load)


async def _until_ready(
    machines: list[Machine], watch: Stopwatch, *, wait_for_samples: bool
) -> tuple[RunningGuest, ...]:
    """Bring all machines to where they are to be. The first that fails ends it for all; its error is raised bare."""
    running: dict[str, RunningGuest] = {}

    async def one(machine: Machine) -> None:
        running[machine.guest.name] = await machine.until_ready(watch.step, wait_for_samples=wait_for_samples)

    try:
        async with trio.open_nursery() as nursery:
            for machine in machines:
                nursery.start_soon(one, machine)
    except* QmpallocError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        failure = error
    else:
        return tuple(running[machine.guest.name] for machine in machines)
    raise failure
