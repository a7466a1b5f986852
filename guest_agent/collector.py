"""Stage one: checks what the kernel offers, compiles and attaches ``program.c`` with bcc, and becomes `reader`."""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from guest_agent import ages, procfs
from guest_agent.btf import BtfError
from guest_agent.counters_file import DIRECTORY, CountersFile, Series, log, publish
from guest_agent.duty import WINDOW_EVERY, WINDOW_MS_LEAST
from guest_agent.probes import KERNEL_BTF, Probes
from guest_agent.reader import COUNTERS, STOP_SIGNALS
from guest_agent.samples import NAME as SAMPLES_NAME

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11

EXIT_UNSUITABLE = 78
"""Exit status that keeps systemd from starting the collector again (EX_CONFIG of sysexits.h)."""

_PROGRAM = Path(__file__).with_name("program.c")
_LARGE_BYTES = 1 << 20
_PAGE_BYTES = 4096
_WITHOUT = {
    "samples": "accesses are not sampled",
    "ages": "ages of memory are not told",
    "ghosts": "refault distances are not told",
}
"""What the log says where a part cannot be had, by its name."""
_CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 21, 38, 39
# Not `-m`: runpy and what it imports would stay in the reader's memory. Nor PYTHONPATH: -I ignores it, for good.
_READER = (
    "import sys; sys.path.insert(0, sys.argv[1]); from guest_agent.reader import main; sys.exit(main(sys.argv[2:]))"
)


class CannotCountError(Exception):
    """Why this guest's page cache cannot be counted, in one line, with what to do about it."""


class UnsuitableKernelError(CannotCountError):
    """The running kernel itself is why: another try cannot end otherwise before another kernel is booted."""


class AlreadyRunningError(Exception):
    """Another collector holds the directory."""


def lock(directory: Path) -> int:
    """Return a descriptor that keeps other collectors out of `directory` for as long as it is open, exec included.

    Raises:
        AlreadyRunningError: One is there.
        OSError: The directory does not exist and cannot be made, or cannot be opened.
    """
    directory.mkdir(mode=0o755, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise AlreadyRunningError(f"another collector is running: {directory} is locked") from None
    os.set_inheritable(fd, True)
    return fd


def check_headers(release: str, modules: Path = Path("/lib/modules")) -> None:
    """Check that bcc will find what it includes before any program.

    Args:
        release: That of the running kernel.
        modules: Where distributions put what belongs to a kernel.

    Raises:
        CannotCountError: The headers are not installed.
    """
    build = modules / release / "build"
    if not build.is_dir() and not Path("/sys/kernel/kheaders.tar.xz").exists():
        raise CannotCountError(
            f"the headers of the running kernel are not installed (no {build}); "
            f"on Debian: apt-get install linux-headers-{release}"
        )


def check_kernel(status: str | None, btf: Path = Path(KERNEL_BTF)) -> None:
    """Check what no program can be loaded without.

    Args:
        status: ``/proc/self/status``.
        btf: Where the kernel keeps its type information.

    Raises:
        CannotCountError: A privilege is missing.
        UnsuitableKernelError: The type information is missing, or its pages are larger than the host counts.
    """
    if (page_bytes := os.sysconf("SC_PAGE_SIZE")) != _PAGE_BYTES:
        raise UnsuitableKernelError(f"this kernel has pages of {page_bytes >> 10} KiB: only those of 4 KiB are counted")
    if not (procfs.has_capabilities(status, _CAP_SYS_ADMIN) or procfs.has_capabilities(status, _CAP_PERFMON, _CAP_BPF)):
        raise CannotCountError("no privilege to load eBPF programs: run as root, or with CAP_BPF and CAP_PERFMON")
    if not btf.exists():
        raise UnsuitableKernelError(f"this kernel has no type information ({btf}): it needs CONFIG_DEBUG_INFO_BTF=y")


def compile_and_attach(flags: list[str]) -> Any:
    """Return the bcc object of program.c, all its programs attached.

    Raises:
        CannotCountError: bcc is missing, or it failed; the message has the first line that tells why.
    """
    try:
        from bcc import BPF  # takes seconds and 50 MB, so only when all is well
    except ImportError as error:
        raise CannotCountError(f"bcc is not installed ({error}); on Debian: apt-get install python3-bpfcc") from None
    with _captured_stderr() as stderr:
        try:
            return BPF(text=_PROGRAM.read_text().encode(), cflags=flags)
        except Exception as error:  # bcc raises nothing more specific
            raise CannotCountError(f"bcc: {error}{first_error(stderr.text())}") from None


def first_error(output: str) -> str:
    """Return the line of a compiler's or the verifier's output that tells what is wrong, after a colon.

    The compiler's is the first with an error, the verifier's the last one but for its statistics.
    """
    lines = [line.strip() for line in output.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("processed ", "HINT:"))]
    errors = [line for line in lines if "error:" in line] or lines[-1:]
    return f": {errors[0]}" if errors else ""


class _captured_stderr:  # noqa: N801 (reads as a function)
    """Collects what clang and libbpf write to descriptor 2, which would be pages where one line is due."""

    def __enter__(self) -> Self:
        sys.stderr.flush()
        self._saved = os.dup(2)
        self._file = os.memfd_create("stderr")
        os.dup2(self._file, 2)
        return self

    def text(self) -> str:
        return os.pread(self._file, 1 << 20, 0).decode("utf-8", "replace")

    def __exit__(self, *_: object) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)
        os.close(self._file)


def tell_service_manager(state: str) -> None:
    """Tell systemd that the state changed (sd_notify(3)), if it started us."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def open_mapped_files(maps: str) -> list[int]:
    """Return descriptors of the large files that this process has mapped: the compiler, for the reader to forget.

    Args:
        maps: ``/proc/self/maps``.
    """
    paths = sorted({line.split(maxsplit=5)[5] for line in maps.splitlines() if "/" in line})
    descriptors = []
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        if os.fstat(fd).st_size >= _LARGE_BYTES:
            descriptors.append(fd)
        else:
            os.close(fd)
    return descriptors


def become_reader(
    module: Any,
    directory: Path,
    series: Series,
    counted: set[str],
    missing: list[str],
    *,
    sampling: bool = False,
    ghosts: bool = False,
    ages_shift: int = 0,
    duty: float = 1.0,
) -> NoReturn:
    """Replace this process by the reader. What keeps the programs attached are the descriptors it inherits.

    `ages_shift` is how many frames of memory one stands for, as a power of two; 0: no ages are told. `duty` is the
    share of the time in which cached reads are counted.
    """
    attachments = [
        *module.kfunc_entry_fds.values(),
        *module.kfunc_exit_fds.values(),
        *module.raw_tracepoint_fds.values(),
    ]
    programs = [function.fd for function in module.funcs.values()]
    counters = module[b"counts"].map_fd
    maps = (b"samples", b"sample_mask", b"dominant_pages", *([b"ghosts"] if ghosts else [])) if sampling else ()
    sampled = [module[name].map_fd for name in maps]
    aged = [module[b"ages"].map_fd] if ages_shift else []
    for fd in (*attachments, *programs, counters, *sampled, *aged):
        os.set_inheritable(fd, True)
    root = str(Path(__file__).resolve().parent.parent)
    state = [str(directory), series.start_id, str(series.sequence), str(series.interval_ms), str(counters)]
    compiler = open_mapped_files(Path("/proc/self/maps").read_text())
    for fd in compiler:
        os.set_inheritable(fd, True)
    aged_words = [*aged, ages_shift] if aged else []
    words = (programs, sorted(counted), missing, compiler, sampled, aged_words, duty_words(module, duty))
    lists = [",".join(map(str, each)) for each in words]
    # A signal that comes before the reader looks for one waits for it, instead of leaving the file behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    # -I and -S: nothing of the environment or of site-packages; -B: it may not write beside its sources.
    os.execv(sys.executable, [sys.executable, "-ISB", "-c", _READER, root, *state, *lists])


def duty_words(module: Any, share: float) -> list[Any]:
    """Return what the reader is told of a duty cycle: its share, and attachment and program of what is detached."""
    ends = module.kfunc_exit_fds.items() if share < 1.0 else ()
    reads = [(fd, module.funcs[name].fd) for name, fd in ends if name.endswith(b"__filemap_read")]
    return [share, *reads[0]] if reads else []


def address_of(symbol: str, path: str = "/proc/kallsyms") -> int:
    """Return where a symbol of the kernel is; 0 where the kernel does not say."""
    ending = f" {symbol}\n"
    with Path(path).open() as lines:  # tens of thousands of them
        return next((int(line.split(maxsplit=1)[0], 16) for line in lines if line.endswith(ending)), 0)


class Watch:
    """The page frames whose ages are to be told.

    Args:
        probes: What this kernel offers.
        directory: Where the collector's files are.

    Attributes:
        frames: Their numbers, rising.
        shift: How many frames one stands for, as a power of two.
        flags: What the compiler is told.

    Raises:
        NoAgesError: This kernel lacks what that takes.
    """

    def __init__(self, probes: Probes, directory: Path) -> None:
        if not probes.can_tell_ages:
            raise ages.NoAgesError(
                "this kernel has no DAMON of Linux 6.7 or later (CONFIG_DAMON_PADDR, CONFIG_DAMON_SYSFS)"
            )
        page_size = os.sysconf("SC_PAGE_SIZE")
        ranges = ages.memory_ranges(str(directory))
        self.shift = ages.block_shift(ranges, page_size)
        self.frames = ages.picked(ranges, self.shift, page_size, os.urandom(4096))
        try:
            vmemmap = address_of("vmemmap_base")
        except OSError:
            vmemmap = 0
        if not self.frames or not vmemmap:
            raise ages.NoAgesError("the kernel does not say where its pages are (vmemmap_base in /proc/kallsyms)")
        self.flags = probes.ages_flags(
            shift=self.shift, frames=(self.frames[-1] >> self.shift) + 1, step_ms=ages.STEP_MS, vmemmap=vmemmap
        )


def compile_most(flags: list[str], extras: list[tuple[str, list[str]]]) -> tuple[Any, list[str]]:
    """Return the bcc object of program.c with as much as this kernel takes of what is not needed for counting.

    Args:
        flags: What counting takes.
        extras: Name and flags of each further part, the most important first. The last one is left out first.

    Returns:
        The object, and the names of the extras in it. What was left out is told in the log.

    Raises:
        CannotCountError: Not even counting works.
    """
    for count in range(len(extras), 0, -1):
        try:
            module = compile_and_attach([*flags, *(flag for _, more in extras[:count] for flag in more)])
        except CannotCountError as error:
            log(f"{_WITHOUT[extras[count - 1][0]]}: {error}")
        else:
            return module, [name for name, _ in extras[:count]]
    return compile_and_attach(flags), []


def describe(counted: set[str], missing: list[str]) -> str:
    """Return the line of the log that tells what is counted, and what is not for want of which hooks."""
    absent = [name for name in COUNTERS if name not in counted]
    line = f"counting {', '.join(sorted(counted))}"
    line += f"; not counting {', '.join(absent)}" if absent else ""
    return line + (f"; not usable in this kernel: {', '.join(missing)}" if missing else "")


def start(
    directory: Path, series: Series, *, sampling: bool = True, with_ages: bool = True, duty: float = 1.0
) -> NoReturn:
    """Attach all hooks that this kernel has and become the reader.

    Args:
        directory: Where the files go.
        series: Of the counters file.
        sampling: Whether accesses are sampled, if they can be. What is counted does not depend on it.
        with_ages: Whether it is told how old memory is, if that can be.
        duty: Share of the time in which cached reads are counted; above 0.

    Raises:
        CannotCountError: Nothing can be counted.
        UnsuitableKernelError: Nothing can be counted on this kernel.
    """
    check_kernel(procfs.read("/proc/self/status"))
    release = os.uname().release
    try:
        probes = Probes(Path(KERNEL_BTF).read_bytes())
    except BtfError as error:
        raise UnsuitableKernelError(f"the type information of {release} is not understood: {error}") from None
    series.missing_hooks = probes.missing
    counted = probes.countable
    if not counted:
        raise UnsuitableKernelError(
            f"nothing can be counted on Linux {release}, 6.1 or later is needed: no usable {', '.join(probes.missing)}"
        )
    check_headers(release)
    extras = []
    if sampling and probes.can_sample:
        extras.append(("samples", probes.sampling_flags(secrets.randbits(64))))
    elif sampling:
        log(f"{_WITHOUT['samples']}: this kernel lacks what that takes")
    watch = _watch(probes, directory) if with_ages else None
    if watch is not None:
        extras.append(("ages", watch.flags))
    if sampling and probes.can_tell_ghosts:
        extras.append(("ghosts", ["-DSAMPLES_GHOSTS"]))
    module, told = compile_most(probes.compiler_flags, extras)
    shift = 0
    if watch is not None and "ages" in told:
        try:
            ages.start(str(directory), watch.frames, os.sysconf("SC_PAGE_SIZE"))
            shift = watch.shift
        except ages.NoAgesError as error:
            log(f"{_WITHOUT['ages']}: {error}")
    log(describe(counted, probes.missing))
    tell_service_manager("READY=1")
    become_reader(
        module, directory, series, counted, probes.missing,
        sampling="samples" in told, ghosts="ghosts" in told, ages_shift=shift, duty=duty,
    )  # fmt: skip


def _watch(probes: Probes, directory: Path) -> Watch | None:
    try:
        return Watch(probes, directory)
    except ages.NoAgesError as error:
        log(f"{_WITHOUT['ages']}: {error}")
        return None


def _stop(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def main(arguments: list[str]) -> int:
    """Run the collector until it is told to stop; return the exit status."""
    parser = argparse.ArgumentParser(prog="qmpalloc-collector", description="Count page-cache accesses and misses.")
    parser.add_argument(
        "--directory", type=Path, default=Path(DIRECTORY), help="where counters.json goes (%(default)s)"
    )
    parser.add_argument("--interval-ms", type=int, default=1000, help="how often it is replaced (%(default)s)")
    parser.add_argument("--no-samples", action="store_true", help="count only, and write no samples.bin")
    parser.add_argument("--no-ages", action="store_true", help="do not tell how long memory has not been touched")
    parser.add_argument(
        "--duty", type=float, default=1.0,
        help="share of the time in which cached reads are counted; below 1 they are estimated (%(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if not 10 <= options.interval_ms <= 3_600_000:
        parser.error("--interval-ms must be between 10 and 3600000")
    least = min(1.0, 2 * WINDOW_MS_LEAST / (WINDOW_EVERY * options.interval_ms))
    if not least <= options.duty <= 1.0:
        parser.error(f"--duty must be between {least:.2g} and 1: 0.1 counts cached reads for a tenth of the time")
    try:
        lock(options.directory)
    except (AlreadyRunningError, OSError) as error:
        log(str(error))
        return 1
    file = CountersFile(str(options.directory))
    CountersFile(str(options.directory), SAMPLES_NAME).remove()
    series = Series(secrets.token_hex(8), options.interval_ms)
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    problem = publish(file, series, None, "starting: compiling and attaching the probes")
    if problem:
        log(problem)
    try:
        start(
            options.directory, series,
            sampling=not options.no_samples, with_ages=not options.no_ages, duty=options.duty,
        )  # fmt: skip
    except (CannotCountError, OSError) as error:
        log(str(error))
        publish(file, series, None, str(error))
        if isinstance(error, UnsuitableKernelError):
            return EXIT_UNSUITABLE
    except SystemExit:
        file.remove()
        raise
    return 1
