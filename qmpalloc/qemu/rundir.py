"""The run directory: one directory per guest that qmpalloc started, with its sockets, logs and who it is.

A guest is known by its process id *and* the time that process started, so that a number used again by another process
is never signalled.
"""

from __future__ import annotations

import os
import pwd
import signal
import stat
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from qmpalloc.errors import HostError
from qmpalloc.files import write_json

RECORD_NAME = "guest.json"
POLL_S = 0.05
LINGERS = Path("/var/lib/systemd/linger")

ANOTHER_HINT = "choose another with XDG_RUNTIME_DIR, or with [host] run_dir in the configuration"


class GuestRecord(Struct, frozen=True, kw_only=True):
    """``guest.json``: a guest that was started.

    Attributes:
        name: The guest.
        pid: Of its QEMU (after ``exec``, also when it was started through setpriv).
        start_ticks: When that process started, in clock ticks since the host booted.
        boot_id: Of the host.
        started_at_s: Unix time.
        config_file: The configuration it comes from.
        memory_bytes: Its RAM.
        accelerator: ``kvm`` or ``tcg``.
        image: Name of the image it booted.
        monitor: Path of its QMP socket.
        agent: Path of its agent socket.
        detached: It was left running on purpose.
    """

    name: str
    pid: int
    start_ticks: int
    boot_id: str
    started_at_s: float
    config_file: str
    memory_bytes: int
    accelerator: str
    image: str
    monitor: str
    agent: str
    detached: bool

    @property
    def alive(self) -> bool:
        """True while the very process that was started exists and is no zombie."""
        return self.boot_id == host_boot_id() and start_ticks(self.pid) == self.start_ticks


def host_boot_id() -> str:
    """Return the id of the host's present boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it does not exist or has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    state, ticks = fields[0], int(fields[19])
    return None if state in {"Z", "X"} else ticks


def prepare_run_dir(run_dir: Path) -> None:
    """Make the run directory, for its owner only.

    Raises:
        HostError: It cannot be made, is not ours, or others can enter it: whoever can open a guest's sockets owns the
            guest.
    """
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = run_dir.lstat()
    except FileExistsError as error:
        raise HostError(f"{run_dir} is not a directory", hint=ANOTHER_HINT) from error
    except OSError as error:
        raise HostError(f"{run_dir} cannot be made: {error.strerror}", hint=ANOTHER_HINT) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise HostError(f"{run_dir} is not a directory of yours", hint=ANOTHER_HINT)
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise HostError(f"{run_dir} can be entered by others", hint=f"chmod 700 {run_dir}")


def ends_at_logout(run_dir: Path, lingers: Path = LINGERS) -> bool:
    """Tell whether systemd removes a directory when its user logs out: in ``/run/user``, unless the user lingers.

    Processes go on then, by default, and their sockets are gone.
    """
    user = os.getuid()
    if not run_dir.is_relative_to(f"/run/user/{user}"):
        return False
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:  # systemd knows no such user, and keeps nothing for it
        return True
    return not (lingers / name).exists()


def write_record(directory: Path, record: GuestRecord) -> None:
    """Store who runs in a guest's directory."""
    write_json(directory / RECORD_NAME, record)


def read_record(directory: Path) -> GuestRecord | None:
    """Return who runs, or ran, in a guest's directory; None when nobody did or the record is unusable."""
    try:
        return msgspec.json.decode((directory / RECORD_NAME).read_bytes(), type=GuestRecord)
    except (OSError, msgspec.DecodeError):
        return None


def list_records(run_dir: Path) -> list[GuestRecord]:
    """Return the guests of a run directory, by name."""
    records = [read_record(file.parent) for file in sorted(run_dir.glob(f"*/{RECORD_NAME}"))]
    return [record for record in records if record is not None]


def clear(directory: Path) -> None:
    """Remove record and sockets of a guest that has ended; its logs stay for people."""
    for path in [directory / RECORD_NAME, *directory.glob("*.sock")]:
        path.unlink(missing_ok=True)


def stop(record: GuestRecord, *, grace_s: float = 5.0) -> None:
    """End a guest's QEMU: an orderly end first, then by force. Returns when it is gone.

    SIGTERM makes QEMU shut down as its ``quit`` command does, and unlike that needs no free monitor socket.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline_s = time.monotonic() + grace_s
        if record.alive:
            try:
                os.kill(record.pid, number)
            except ProcessLookupError:
                return
        while record.alive:
            if time.monotonic() > deadline_s:
                break
            time.sleep(POLL_S)
