"""Where commands are run in a guest of a configuration, or in one that `vm up` started."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from qmpalloc.channel import Written
from qmpalloc.config import Config, GuestConfig, default_run_dir
from qmpalloc.errors import ConfigError
from qmpalloc.qemu import argv, rundir


class Way(Struct, frozen=True, kw_only=True):
    """The way into a guest, as `qmpalloc.channel.open_channel` wants it.

    Attributes:
        guest: Its name.
        channel: As written.
        agent: The socket of the agent that may run programs, if any may.
    """

    guest: str
    channel: Written
    agent: Path


def way_into(config: Config | None, name: str) -> Way:
    """Return the way into the guest called `name`, of a configuration or of the default run directory.

    Raises:
        ConfigError: There is no such guest.
    """
    if config is not None:
        return way_of(config, config.guest(name))
    run_dir = default_run_dir()
    for record in rundir.list_records(run_dir):
        if record.name == name:
            return Way(guest=name, channel="agent", agent=_of_two(run_dir / name / "lab.sock", Path(record.agent)))
    hint = "see qmpalloc vm ls; a guest of a configuration needs --config"
    raise ConfigError(f"no guest {name} in {run_dir}", key="GUEST", hint=hint)


def way_of(config: Config, guest: GuestConfig) -> Way:
    """Return the way into a guest of a configuration."""
    lab = argv.sockets_of(guest, Path(config.host.run_dir)).lab
    agent = Path(guest.agent)
    return Way(guest=guest.name, channel=guest.channel, agent=_of_two(lab, agent) if guest.vm is not None else agent)


def _of_two(lab: Path, agent: Path) -> Path:
    """Return the second agent, which may run programs and serves nobody else; without one, the first may be allowed."""
    return lab if lab.exists() else agent
