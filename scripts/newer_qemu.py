"""Print a directory with a newer QEMU and guest agent than this host's, and Prometheus, to be put first in PATH.

They are the packages of a newer Debian suite, downloaded once from the host's mirror and unpacked in the user's cache.
Nothing is installed: small scripts start the programs with their own dynamic loader and libraries, on this host's files
and sockets, by this user.

    scripts/newer_qemu.py               unpack them if they are not there yet (seconds)
    scripts/newer_qemu.py --if-there    print nothing if they are not there
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from qmpalloc.errors import QmpallocError
from qmpalloc.qemu import cache
from qmpalloc.qemu.host import require, require_namespace, run
from qmpalloc.qemu.mirror import host_mirror, host_transfer_options
from qmpalloc.qemu.progress import Stopwatch
from qmpalloc.qemu.recipe import DIGEST_CHARS
from qmpalloc.qemu.rootfs import run_mmdebstrap

SUITE = "trixie"  # QEMU 10.0
PACKAGES = ("qemu-system-x86", "qemu-guest-agent", "prometheus")
PROGRAMS = {
    "qemu-system-x86_64": "usr/bin/qemu-system-x86_64",
    "qemu-ga": "usr/sbin/qemu-ga",
    "prometheus": "usr/bin/prometheus",
    "promtool": "usr/bin/promtool",
}
OPTIONS = {"qemu-system-x86_64": '-L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios"'}

# bash for `exec -a`: the process is known by the program's name, as it would be without a loader.
START_SCRIPT = """\
#!/bin/bash
tree=$(cd "${{0%/*}}/.." && pwd)
exec -a {name} "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$tree/usr/lib/x86_64-linux-gnu" --argv0 {name} \\
    "$tree/{program}" {options} "$@"
"""


def target_dir() -> Path:
    """Return where they are unpacked. Its name holds the digest of this file: a change here unpacks them anew."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:DIGEST_CHARS]
    return cache.cache_dir() / "qemu" / f"{SUITE}-{digest}"


def say(line: str) -> None:
    """Report progress; standard output is for the directory alone."""
    print(line, file=sys.stderr, flush=True)


def make(partial: Path) -> None:
    """Fill the empty directory `partial` with the unpacked packages in ``usr`` and the start scripts in ``bin``.

    Raises:
        HostError: A program, a privilege or room is missing, the packages cannot be had, or they do not run here.
    """
    watch = Stopwatch(say)
    watch.step(f"unpacking {' and '.join(PACKAGES)} of Debian {SUITE}, once")
    require(["mmdebstrap", "tar", "bash"])
    require_namespace()
    tar, mirror = partial / "packages.tar", host_mirror()
    argv = [
        "mmdebstrap",
        "--mode=root" if os.geteuid() == 0 else "--mode=unshare",
        "--variant=extract",  # unpacked only: no package's script runs
        "--format=tar",
        "--architectures=amd64",
        f"--include={','.join(PACKAGES)}",
        *(f"--aptopt={option}" for option in host_transfer_options()),
        SUITE,
        str(tar),
        *([mirror] if mirror else []),
    ]
    run_mmdebstrap(argv, what=f"unpacking QEMU of {SUITE}", log_path=partial / "build.log", on_step=watch.step)
    # As this user, and without /dev, /etc and /var, which nothing here reads.
    extract = ["tar", "--extract", "--no-same-owner", f"--directory={partial}", f"--file={tar}", "./usr"]
    run(extract, what="unpacking QEMU's packages")
    tar.unlink()
    (partial / "bin").mkdir()
    for name, program in PROGRAMS.items():
        script = partial / "bin" / name
        script.write_text(START_SCRIPT.format(name=name, program=program, options=OPTIONS.get(name, "")))
        script.chmod(0o755)
        watch.step(run([str(script), "--version"], what=f"starting {name}").splitlines()[0])


def main() -> int:
    """Print the directory; 1 and the reason on standard error when it cannot be made."""
    target = target_dir()
    try:
        if "--if-there" not in sys.argv[1:]:
            cache.obtain(target, make, report=say)
    except QmpallocError as error:
        say(f"error: {error}")
        return 1
    if target.is_dir():
        print(target / "bin")
    return 0


if __name__ == "__main__":
    sys.exit(main())
