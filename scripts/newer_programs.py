"""Print a directory with newer programs than this host's, to be put first in PATH: QEMU and others, or a Python.

They are packages of a newer Debian suite, downloaded once from the host's mirror and unpacked in the user's cache.
Nothing is installed: small scripts start the programs with their own dynamic loader and libraries, on this host's files
and sockets, by this user.

    scripts/newer_programs.py qemu               QEMU 10, its guest agent, Prometheus: unpacked, if need be (seconds)
    scripts/newer_programs.py qemu --if-there    nothing is printed if they are not there
    scripts/newer_programs.py python3.13         this Python; python3.14, too
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from qmpalloc.errors import QmpallocError
from qmpalloc.qemu import cache
from qmpalloc.qemu.host import require, require_namespace, run
from qmpalloc.qemu.mirror import host_mirror, host_transfer_options
from qmpalloc.qemu.progress import Stopwatch
from qmpalloc.qemu.recipe import DIGEST_CHARS
from qmpalloc.qemu.rootfs import run_mmdebstrap


@dataclass(frozen=True)
class Programs:
    """Programs of one Debian suite: by name their file, and options that they need to find their data."""

    suite: str
    packages: tuple[str, ...]
    files: dict[str, str]
    options: dict[str, str] = field(default_factory=dict)


def python(version: str, suite: str) -> Programs:
    """Return an interpreter with its standard library. Its venvs have no pip: ``pip --python`` fills them."""
    name = f"python{version}"
    return Programs(suite, (name, f"{name}-venv"), {name: f"usr/bin/{name}"})


PROGRAMS = {
    "qemu": Programs(
        "trixie",  # QEMU 10.0
        ("qemu-system-x86", "qemu-guest-agent", "prometheus"),
        {
            "qemu-system-x86_64": "usr/bin/qemu-system-x86_64",
            "qemu-ga": "usr/sbin/qemu-ga",
            "prometheus": "usr/bin/prometheus",
            "promtool": "usr/bin/promtool",
        },
        {"qemu-system-x86_64": '-L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios"'},
    ),
    "python3.13": python("3.13", "trixie"),
    "python3.14": python("3.14", "forky"),
}

# bash for `exec -a`: the process is known by the program's name, as it would be without a loader. A link to the script
# (a venv's interpreter is one) is followed to find the tree; the program hears by which name it was called.
START_SCRIPT = """\
#!/bin/bash
script=$(readlink -f "$0") && tree=${{script%/*/*}}
exec -a {name} "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$tree/usr/lib/x86_64-linux-gnu" --argv0 "$0" \\
    "$tree/{program}" {options} "$@"
"""


def target_dir(name: str) -> Path:
    """Return where they are unpacked. Its name holds the digest of this file: a change here unpacks them anew."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:DIGEST_CHARS]
    return cache.cache_dir() / "programs" / f"{name}-{digest}"


def say(line: str) -> None:
    """Report progress; standard output is for the directory alone."""
    print(line, file=sys.stderr, flush=True)


def make(programs: Programs, partial: Path) -> None:
    """Fill the empty directory `partial` with the unpacked packages in ``usr`` and the start scripts in ``bin``.

    Raises:
        HostError: A program, a privilege or room is missing, the packages cannot be had, or they do not run here.
    """
    watch = Stopwatch(say)
    what = f"{' and '.join(programs.packages)} of Debian {programs.suite}"
    watch.step(f"unpacking {what}, once")
    require(["mmdebstrap", "tar", "bash"])
    require_namespace()
    tar, mirror = partial / "packages.tar", host_mirror()
    argv = [
        "mmdebstrap",
        "--mode=root" if os.geteuid() == 0 else "--mode=unshare",
        "--variant=extract",  # unpacked only: no package's script runs
        "--format=tar",
        "--architectures=amd64",
        f"--include={','.join(programs.packages)}",
        *(f"--aptopt={option}" for option in host_transfer_options()),
        programs.suite,
        str(tar),
        *([mirror] if mirror else []),
    ]
    run_mmdebstrap(argv, what=f"unpacking {what}", log_path=partial / "build.log", on_step=watch.step)
    # As this user, and without /dev, /etc and /var, which nothing here reads.
    extract = ["tar", "--extract", "--no-same-owner", f"--directory={partial}", f"--file={tar}", "./usr"]
    run(extract, what=f"unpacking {what}")
    tar.unlink()
    (partial / "bin").mkdir()
    (partial / "lib").symlink_to("usr/lib")  # a Python looks for its library beside the directory it was started from
    for name, program in programs.files.items():
        script = partial / "bin" / name
        script.write_text(START_SCRIPT.format(name=name, program=program, options=programs.options.get(name, "")))
        script.chmod(0o755)
        watch.step(run([str(script), "--version"], what=f"starting {name}").splitlines()[0])


def main() -> int:
    """Print the directory; 1 and the reason on standard error when it cannot be made."""
    parser = argparse.ArgumentParser(description="print a directory with newer programs than this host's")
    parser.add_argument("name", choices=sorted(PROGRAMS))
    parser.add_argument("--if-there", action="store_true", help="print nothing if they are not unpacked yet")
    asked = parser.parse_args()
    target = target_dir(asked.name)
    try:
        if not asked.if_there:
            cache.obtain(target, lambda partial: make(PROGRAMS[asked.name], partial), report=say)
    except QmpallocError as error:
        say(f"error: {error}")
        return 1
    if target.is_dir():
        print(target / "bin")
    return 0


if __name__ == "__main__":
    sys.exit(main())
