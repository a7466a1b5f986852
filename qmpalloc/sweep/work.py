"""What a worker does with a task, and what it answers. Nothing here knows of Dask."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import socket
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

from msgspec import Struct

import qmpalloc
from qmpalloc.errors import QmpallocError
from qmpalloc.experiment.store.records import DiskCalibration
from qmpalloc.qemu.architecture import native
from qmpalloc.qemu.host import find_program
from qmpalloc.sweep.guests import Packed, run_on_guests
from qmpalloc.sweep.model import ModelRow, run_in_model
from qmpalloc.sweep.spec import ModelTask, Task


class Done(Struct, frozen=True, kw_only=True):
    """What became of a task: a line of ``done.jsonl``.

    Attributes:
        key: Of the task.
        host: Where it ran; empty when no worker lived to tell.
        seconds: Processor time of a run in the model; time that passed of one on real guests.
        row: What came out of a run in the model.
        packed: What came out of one on real guests; not kept in the line.
        failed: Why it does not count, with what to do about it; empty when it does.
        trace: Where in the code that was; empty when it is told in words.
    """

    key: str
    host: str = ""
    seconds: float = 0.0
    row: ModelRow | None = None
    packed: Packed | None = None
    failed: str = ""
    trace: str = ""


class HostFacts(Struct, frozen=True, kw_only=True):
    """What a worker tells of the host that it runs on."""

    host: str
    code: str
    python: str
    cpus: int
    kernel: str
    qemu: str


def facts() -> HostFacts:
    """Return what is to be known of this host."""
    return HostFacts(
        host=socket.gethostname(),
        code=code_digest(),
        python=platform.python_version(),
        cpus=os.cpu_count() or 1,
        kernel=platform.release(),
        qemu=find_program(native().program) or "",
    )


@cache
def code_digest() -> str:
    """Return a digest of qmpalloc's own code: its version alone does not tell whether two hosts run the same."""
    root = Path(qmpalloc.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def work(key: str, task: Task, code: str, disks: dict[str, DiskCalibration]) -> Done:
    """Run a task on this host; what it raises becomes an answer, so that the others go on.

    Args:
        key: Of the task.
        task: What is to be run.
        code: Digest of the code that all run.
        disks: Host to throttle of the task's experiment, where it has been measured before.
    """
    host = socket.gethostname()
    if code_digest() != code:
        return Done(key=key, host=host, failed="another qmpalloc is installed there; install the same, then go on")
    clock: Callable[[], float] = time.thread_time if isinstance(task, ModelTask) else time.monotonic
    began_s = clock()
    row, packed, failed, trace = None, None, "", ""
    try:
        if isinstance(task, ModelTask):
            row = run_in_model(task)
        else:
            packed = run_on_guests(task, disks.get(host))
            failed = packed.failed
    except (Exception, SystemExit) as error:  # a user's policy may raise anything
        failed, trace = told(error), "" if isinstance(error, QmpallocError) else traceback.format_exc()
    return Done(key=key, host=host, seconds=clock() - began_s, row=row, packed=packed, failed=failed, trace=trace)


def told(error: BaseException) -> str:
    """Return in one line what went wrong, where, and what to do about it."""
    if isinstance(error, QmpallocError):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"{error.filename or 'a file'}: {error.strerror} (make room there, or set TMPDIR for its worker)"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
