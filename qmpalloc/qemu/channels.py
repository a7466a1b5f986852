"""Where programs are run in a guest: of a configuration, or of those that `vm up` has started."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from qmpalloc.channel import Written
from qmpalloc.config import DEFAULT_COUNTERS_FILE, Config, GuestConfig, default_run_dir
from qmpalloc.errors import ConfigError
from qmpalloc.qemu import argv, rundir


class Way(Struct, frozen=True, kw_only=True):
    """The way into a guest, as `qmpalloc.channel.open_channel` wants it.

    Attributes:
        guest: Its name.
        channel: As written.
        agent: The socket of the agent that may run programs, if any may.
        counters_file: Path in the guest.
        directory: Of the file, in which a command is run.
    """

    guest: str
    channel: Written
    agent: Path
    counters_file: str = DEFAULT_COUNTERS_FILE
    directory: Path | None = None


def way_into_started(name: str) -> Way:
    """Return the way into the guest called `name` in the default run directory.

    Raises:
        ConfigError: There is no such guest.
    """
    run_dir = default_run_dir()
    for record in rundir.list_records(run_dir):
        if record.name == name:
            return Way(guest=name, channel="agent", agent=_of_two(run_dir / name / "lab.sock", Path(record.agent)))
    hint = "see qmpalloc vm ls; a guest of a configuration needs --config"
    raise ConfigError(f"no guest {name} in {run_dir}", key="GUEST", hint=hint)


def ways_into(config: Config) -> tuple[Way, ...]:
    """Return the ways into the guests of a configuration."""
    return tuple(_way_into(config, guest) for guest in config.guests)


def _way_into(config: Config, guest: GuestConfig) -> Way:
    agent = Path(guest.agent)
    if guest.vm is not None:
        agent = _of_two(argv.sockets_of(guest, Path(config.host.run_dir)).lab, agent)
    return Way(
        guest=guest.name, channel=guest.channel, agent=agent, counters_file=guest.counters_file,
        directory=Path(config.file).parent,
    )  # fmt: skip


def _of_two(lab: Path, agent: Path) -> Path:
    """Return the second agent, which may run programs and serves nobody else; without one, the first may be allowed."""
    return lab if lab.exists() else agent
