"""Running this host's programs: found or explained, with their last words when they fail, as root of a namespace."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from qmpalloc.errors import HostError
from qmpalloc.qemu.architecture import ARCHITECTURES, native
from qmpalloc.text import visible
from qmpalloc.units import format_size

DEBIAN_PACKAGES = {
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "setpriv": "util-linux",
    "tar": "tar",
    "unshare": "util-linux",
    **dict(architecture.qemu for architecture in ARCHITECTURES.values()),
}
SEARCH_PATH = os.pathsep.join(
    # mke2fs lives in sbin, which an ordinary user's PATH leaves out.
    [*os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/sbin", "/sbin"]
)
LAST_LINES = 12
KEPT_LINES, LINE_CHARS = 1000, 64 * 1024
"""Kept of the output that is handed on, which may have no end, and handed on as one line at most."""
NO_SPACE_HINT = "free some space, or point XDG_CACHE_HOME (images) and TMPDIR (the build) to a larger file system"


def find_program(name: str) -> str | None:
    """Return the path of a program, or None."""
    return shutil.which(name, path=SEARCH_PATH)


def qemu_version(name: str = native().program) -> str:
    """Return the first line of a QEMU's version, by default of this host's own; ``no QEMU`` where there is none."""
    program = find_program(name)
    if program is None:
        return "no QEMU"
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return output.splitlines()[0] if output else "unknown"


def require(programs: Iterable[str]) -> None:
    """Check that all programs exist.

    Raises:
        HostError: One or more are missing; the hint is the command that installs them on Debian.
    """
    missing = [name for name in programs if find_program(name) is None]
    if missing:
        packages = sorted({DEBIAN_PACKAGES.get(name, name) for name in missing})
        raise HostError(f"not installed: {', '.join(missing)}", hint=f"apt install {' '.join(packages)}")


def require_space(path: Path, needed_bytes: int) -> None:
    """Check that the file system of `path` has room.

    Raises:
        HostError: It has less than `needed_bytes` free.
    """
    free_bytes = shutil.disk_usage(path).free
    if free_bytes < needed_bytes:
        raise HostError(
            f"{path} has {format_size(free_bytes)} free, {format_size(needed_bytes)} are needed",
            hint=NO_SPACE_HINT,
        )


def last_lines(text: str, count: int = LAST_LINES) -> str:
    """Return the last lines of a program's output, indented, with everything unprintable replaced."""
    lines = [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    return "\n".join("    " + visible(line)[:200] for line in lines[-count:])


def run(
    argv: Sequence[str],
    *,
    what: str,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    hint: str = "",
) -> str:
    """Run a program to its end and return what it printed, standard output and errors together.

    What it has started and left running ends with it.

    Args:
        argv: The program, found also in ``sbin``, and its arguments.
        what: What it does, for the error: "making the disk with mke2fs".
        env: Added to the environment.
        on_line: Called with each line as it comes; then only the last ones are returned.
        hint: Of the error.

    Raises:
        HostError: It is missing, or it failed; with the last lines of its output.
    """
    require([argv[0]])
    output: deque[str] = deque(maxlen=None if on_line is None else KEPT_LINES)
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", **(env or {})},
        umask=0o022,  # the user's own umask must not show in an image
        start_new_session=True,  # Ctrl-C reaches us alone, and we end what we run
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            assert process.stdout is not None
            threading.Thread(target=_end_rest, args=(process.pid,), daemon=True).start()
            while line := process.stdout.readline(LINE_CHARS):
                output.append(line)
                if on_line is not None:
                    on_line(line.rstrip("\n"))
        except BaseException:
            _end(process)
            raise
    text = "".join(output)
    if process.returncode:
        said = last_lines(text)
        message = f"{what} failed (exit code {process.returncode})\n{said}".rstrip()
        raise HostError(message, hint=NO_SPACE_HINT if is_full(text) else hint)
    return text


def is_full(said: str) -> bool:
    """Return whether a program's output says that a disk is full."""
    return os.strerror(errno.ENOSPC) in said


def _end(process: subprocess.Popen[str]) -> None:
    """End a program and all that it started. By force: what was half done is thrown away, so nothing is to be saved."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _end_rest(pid: int) -> None:
    """Wait for the end of a program that leads a group, and end what else is in it: it would hold the output open."""
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # so that its number is nobody else's yet
        os.killpg(pid, signal.SIGKILL)


def as_root(argv: Sequence[str]) -> list[str]:
    """Return `argv` so that it runs as root, or as root of a user namespace in which this user's files are root's.

    In the namespace files may belong to any user, which is what an unpacked system needs. It takes the subordinate ids
    of ``/etc/subuid``.
    """
    if os.geteuid() == 0:
        return list(argv)
    return ["unshare", "--user", "--map-root-user", "--map-auto", "--", *argv]


def isolated(argv: Sequence[str]) -> list[str]:
    """Return `argv` so that nothing of it outlives us: no process, and no mount.

    As root it gets a process and a mount namespace, which end with its first process, and that with us. A user's
    mmdebstrap makes such namespaces itself. A container may allow none; then nothing but its processes is ended.
    """
    leash = ["setpriv", "--pdeathsig", "KILL"]
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    if os.geteuid() == 0 and subprocess.run([*namespaces, "true"], capture_output=True, check=False).returncode == 0:
        return [*leash, *namespaces, *argv]
    return [*leash, *argv]


def require_namespace() -> None:
    """Check that `as_root` works for this user.

    Raises:
        HostError: It does not.
    """
    if os.geteuid() == 0:
        return
    require(["unshare", "newuidmap"])
    run(
        as_root(["true"]),
        what="entering a user namespace",
        hint="give this user subordinate ids (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER), "
        "allow unprivileged user namespaces, or run as root",
    )


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it, also what belongs to subordinate ids. It need not exist.

    Raises:
        HostError: Something is mounted in it, for example the host's ``/dev`` by a build that was cut off.
    """
    if not path.exists():
        return
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if any(Path(mount).is_relative_to(path) for mount in mounts):
        raise HostError(f"{path} cannot be removed: something is mounted in it", hint=f"umount -R {path}")
    try:
        shutil.rmtree(path)
    except PermissionError:
        run(as_root(["rm", "-rf", "--", str(path)]), what=f"removing {path}")
