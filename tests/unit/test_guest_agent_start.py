"""How the collector starts, and each way in which it cannot: one line, in the log and in the file, and no traceback."""

import ast
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from guest_agent import bpf, collector, procfs, reader
from guest_agent.collector import (
    AlreadyRunningError,
    CannotCountError,
    UnsuitableKernelError,
    check_headers,
    check_kernel,
    first_error,
    lock,
    open_mapped_files,
)
from guest_agent.counters_file import CountersFile, Series
from guest_agent.reader import SLOTS, STOP_SIGNALS, forget_compiler
from qmpalloc.errors import SampleError, SampleFault
from qmpalloc.sample import parse

ROOT = "CapEff:\t000001ffffffffff\n"
SOURCES = Path(collector.__file__).parent


@pytest.fixture(autouse=True)
def keep_signal_handlers():
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_slots_are_those_of_the_program():
    text = (SOURCES / "program.c").read_text()
    members = text.partition("struct counts {")[2].partition("}")[0]
    assert tuple(members.replace("u64", "").replace(";", "").split()) == SLOTS


def test_without_privilege(tmp_path):
    with pytest.raises(CannotCountError, match="run as root, or with CAP_BPF and CAP_PERFMON"):
        check_kernel("CapEff:\t0000000000000000\n", tmp_path)


@pytest.mark.parametrize("effective", [1 << 21, 1 << 38 | 1 << 39])
def test_either_privilege_will_do(tmp_path, effective):
    check_kernel(f"CapEff:\t{effective:016x}\n", tmp_path)


def test_without_type_information(tmp_path):
    with pytest.raises(CannotCountError, match="CONFIG_DEBUG_INFO_BTF=y"):
        check_kernel(ROOT, tmp_path / "absent")


def test_with_larger_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda _: 65536)
    with pytest.raises(UnsuitableKernelError, match="pages of 64 KiB: only those of 4 KiB"):
        check_kernel(ROOT, tmp_path)


def test_without_headers(tmp_path):
    with pytest.raises(CannotCountError, match=r"apt-get install linux-headers-6\.99-test"):
        check_headers("6.99-test", tmp_path)
    (tmp_path / "6.99-test").mkdir()
    (tmp_path / "6.99-test/build").symlink_to(tmp_path / "removed")  # what an autoremove of the headers leaves
    with pytest.raises(CannotCountError):
        check_headers("6.99-test", tmp_path)
    (tmp_path / "removed").mkdir()
    check_headers("6.99-test", tmp_path)


def test_without_bcc(monkeypatch):
    monkeypatch.setitem(sys.modules, "bcc", None)
    with pytest.raises(CannotCountError, match="apt-get install python3-bpfcc"):
        collector.compile_and_attach([])


def test_what_cannot_be_sampled_is_counted(tmp_path, monkeypatch, capsys):
    class Probed:
        countable, missing, compiler_flags = {"accesses"}, [], ["-DX"]
        can_sample, can_tell_ages, can_tell_ghosts = True, False, False

        def __init__(self, _):
            pass

        def sampling_flags(self, salt):
            return ["-DSAMPLES"]

    def compile_and_attach(flags):
        compiled.append(flags)
        if "-DSAMPLES" in flags:
            raise CannotCountError("bcc: too complex")
        return "module"

    def become_reader(*arguments, sampling, ghosts, ages_shift, duty):
        assert (ghosts, ages_shift) == (False, 0)
        became.append((arguments[0], sampling))

    compiled, became = [], []
    monkeypatch.setattr(collector, "KERNEL_BTF", str(tmp_path / "vmlinux"))
    (tmp_path / "vmlinux").write_bytes(b"")
    monkeypatch.setattr(collector, "Probes", Probed)
    monkeypatch.setattr(collector, "check_kernel", lambda *_: None)
    monkeypatch.setattr(collector, "check_headers", lambda *_: None)
    monkeypatch.setattr(collector, "compile_and_attach", compile_and_attach)
    monkeypatch.setattr(collector, "become_reader", become_reader)
    collector.start(tmp_path, Series("00112233aabbccdd", 1000))
    assert (compiled, became) == ([["-DX", "-DSAMPLES"], ["-DX"]], [("module", False)])
    said = capsys.readouterr().err
    assert "accesses are not sampled: bcc: too complex" in said
    assert "ages of memory are not told: this kernel has no DAMON" in said
    Probed.can_sample = False
    collector.start(tmp_path, Series("00112233aabbccdd", 1000))
    collector.start(tmp_path, Series("00112233aabbccdd", 1000), sampling=False)
    assert compiled[2:] == [["-DX"], ["-DX"]]
    Probed.can_sample = True
    monkeypatch.setattr(collector, "compile_and_attach", lambda flags: {"-DSAMPLES": 0} if len(flags) == 1 else {})
    collector.start(tmp_path, Series("00112233aabbccdd", 1000))
    assert became[-1] == ({}, True)  # a bcc object is a mapping, and empty at first


def test_when_the_compiler_fails(monkeypatch, capfd):
    class BPF:
        def __init__(self, **_):
            os.write(2, b"/virtual/main.c:5:1: warning: unused\n/virtual/main.c:7:2: error: no such thing\n1 error\n")
            raise Exception("Failed to compile BPF module <text>")  # noqa: TRY002 (that is what bcc does)

    monkeypatch.setitem(sys.modules, "bcc", types.SimpleNamespace(BPF=BPF))
    with pytest.raises(CannotCountError) as caught:
        collector.compile_and_attach([])
    assert str(caught.value) == ("bcc: Failed to compile BPF module <text>: /virtual/main.c:7:2: error: no such thing")
    assert capfd.readouterr().err == ""


def test_first_error_of_the_verifier():
    assert first_error(
        "0: R1=ctx()\n1: (79) r0 = *(u64 *)(r1 +0)\ninvalid access to context\nprocessed 5 insns\n\n"
    ) == (": invalid access to context")
    assert first_error("\n") == ""


def test_a_second_collector_keeps_off(tmp_path, capsys):
    directory = tmp_path / "run"
    held = lock(directory)
    assert os.get_inheritable(held)
    (directory / "counters.json").write_text("the first one's")
    with pytest.raises(AlreadyRunningError):
        lock(directory)
    assert collector.main(["--directory", str(directory)]) == 1
    assert capsys.readouterr().err == f"qmpalloc-collector: another collector is running: {directory} is locked\n"
    assert (directory / "counters.json").read_text() == "the first one's"
    os.close(held)
    os.close(lock(directory))


def test_the_lock_survives_exec(tmp_path):
    held = lock(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as child:
        os.close(held)
        fd = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.communicate(b"\n")
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def fault_in(path):
    with pytest.raises(SampleError) as caught:
        parse(path.read_bytes())
    assert caught.value.fault is SampleFault.COLLECTOR
    return caught.value.message


def test_says_that_it_is_starting(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        collector, "start", lambda directory, series, **_: seen.append(fault_in(tmp_path / "counters.json"))
    )
    collector.main(["--directory", str(tmp_path)])
    assert seen == ["the collector reports: starting: compiling and attaching the probes"]


def test_a_failure_is_one_line_in_log_and_file(tmp_path, monkeypatch, capsys):
    real_read = procfs.read
    monkeypatch.setattr(
        procfs, "read", lambda path, *most: "CapEff:\t0\n" if path == "/proc/self/status" else real_read(path, *most)
    )
    assert collector.main(["--directory", str(tmp_path)]) == 1
    assert fault_in(tmp_path / "counters.json").startswith("the collector reports: no privilege to load eBPF programs")
    log = capsys.readouterr().err
    assert log.startswith("qmpalloc-collector: no privilege")
    assert log.count("\n") == 1


def test_a_kernel_that_has_nothing_to_count_at_is_named_and_not_tried_again(tmp_path, monkeypatch, capsys):
    """Linux 5.10: what it lacks is in log and file, and the exit status is one that systemd does not restart after."""

    class Probes:
        countable, missing = set[str](), ["filemap_read", "mm_filemap_add_to_page_cache"]

        def __init__(self, _):
            pass

    btf = tmp_path / "vmlinux"
    btf.touch()
    monkeypatch.setattr(collector, "Probes", Probes)
    monkeypatch.setattr(collector, "KERNEL_BTF", str(btf))
    monkeypatch.setattr(collector, "check_kernel", lambda _: None)
    status = collector.main(["--directory", str(tmp_path)])
    assert f"RestartPreventExitStatus={status}\n" in (SOURCES / "qmpalloc-collector.service").read_text()
    said = "6.1 or later is needed: no usable filemap_read, mm_filemap_add_to_page_cache"
    assert fault_in(tmp_path / "counters.json").endswith(said)
    assert json.loads((tmp_path / "counters.json").read_text())["missing_hooks"] == Probes.missing
    assert capsys.readouterr().err.endswith(f"{said}\n")


def test_the_log_names_what_is_not_counted():
    every = set(reader.COUNTERS)
    assert collector.describe({"accesses"}, []).startswith("counting accesses; not counting inserts_read, ")
    assert "; not" not in collector.describe(every, [])
    line = collector.describe(every - {"evictions"}, ["mm_filemap_delete_from_page_cache"])
    assert line.endswith("; not counting evictions; not usable in this kernel: mm_filemap_delete_from_page_cache")
    assert "not counting" not in collector.describe(every, ["filemap_splice_read"])


def test_told_to_stop_while_starting(tmp_path, monkeypatch):
    def stopped(directory, series, *, sampling, with_ages, duty):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(collector, "start", stopped)
    with pytest.raises(SystemExit) as caught:
        collector.main(["--directory", str(tmp_path)])
    assert caught.value.code == 0
    assert tree(tmp_path) == []


def test_a_directory_that_cannot_be_made(tmp_path, capsys):
    assert collector.main(["--directory", str(tmp_path / "absent/run")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_runs_from_any_directory(tmp_path):
    link = tmp_path / "copied"
    link.symlink_to(SOURCES)
    for command in ([str(SOURCES)], [str(link)]):
        done = subprocess.run(
            [sys.executable, "-IB", *command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "--interval-ms" in done.stdout


# ----------------------------------------------------------------------------------------------------------- installer


def install(*arguments):
    return subprocess.run(["sh", str(SOURCES / "install.sh"), *arguments], capture_output=True, text=True, check=False)


def tree(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def test_installs_into_an_image_and_removes_itself(tmp_path):
    stale = tmp_path / "usr/local/lib/qmpalloc/guest_agent/old_module.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    for _ in range(2):
        done = install("--root", str(tmp_path))
        assert (done.returncode, done.stderr) == (0, "")
    assert not stale.exists()
    files = tree(tmp_path)
    assert {"usr/local/lib/qmpalloc/guest_agent/program.c", "usr/local/lib/qmpalloc/guest_agent/__main__.py"} <= set(
        files
    )
    wanted = tmp_path / "etc/systemd/system/multi-user.target.wants/qmpalloc-collector.service"
    assert str(wanted.readlink()) == "/etc/systemd/system/qmpalloc-collector.service"
    assert install("--root", str(tmp_path), "--uninstall").returncode == 0
    assert tree(tmp_path) == []


def test_the_unit_starts_what_is_installed(tmp_path):
    install("--root", str(tmp_path))
    unit = (tmp_path / "etc/systemd/system/qmpalloc-collector.service").read_text()
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert (tmp_path / command.split()[2].lstrip("/") / "__main__.py").is_file()


@pytest.mark.parametrize(
    ("library", "setting"),
    [
        ("usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so", "LogFilterPatterns=~guest-file-(open|close)"),
        ("usr/lib64/systemd/libsystemd-shared-253.11-1.fc38.so", "LogFilterPatterns=~guest-file-(open|close)"),
        ("usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so", "LogLevelMax=notice"),
        ("usr/lib/something-299.so", "LogLevelMax=notice"),  # not known: what every systemd understands
    ],
)
def test_the_agent_is_quieted_as_well_as_its_systemd_can(tmp_path, library, setting):
    (tmp_path / library).parent.mkdir(parents=True)
    (tmp_path / library).touch()
    drop_in = tmp_path / "etc/systemd/system/qemu-guest-agent.service.d/qmpalloc-quiet.conf"
    assert install("--root", str(tmp_path)).returncode == 0
    assert not drop_in.exists()
    done = install("--root", str(tmp_path), "--quiet-agent")
    assert (done.returncode, done.stderr) == (0, "")
    settings = [line for line in drop_in.read_text().splitlines() if not line.startswith("#")]
    assert settings == ["[Service]", setting]
    assert install("--root", str(tmp_path)).returncode == 0  # to update it
    assert drop_in.exists()
    assert install("--root", str(tmp_path), "--uninstall").returncode == 0
    assert tree(tmp_path) == [library]
    assert not drop_in.parent.exists()


# What a guest without headers is told, by the program that installs its packages.
MANAGERS = {
    "apt-get": ("6.99.1-cloud-amd64", "apt-get install linux-headers-6.99.1-cloud-amd64 linux-headers-cloud-amd64"),
    "dnf": ("6.99.1-200.fc44.x86_64", "dnf install kernel-devel-6.99.1-200.fc44.x86_64"),
    "apk": ("6.99.1-0-virt", "apk add linux-virt-dev"),
    "pacman": ("6.99.1-1-lts", "pacman -S linux-lts-headers"),
    "zypper": ("6.99.1-1-default", "zypper install kernel-default-devel"),
    "": ("6.99.1", "with this system's packages"),
}


# As dpkg-query tells it: what brings new kernels, its debug symbols, a kernel, and one that was removed.
KERNELS = """\
installed linux-image-cloud-amd64 linux-image-6.99.1-cloud-amd64 (= 6.99.1-1)
installed linux-image-cloud-amd64-dbg linux-image-6.99.1-cloud-amd64-dbg (= 6.99.1-1)
installed linux-image-6.99.1-cloud-amd64 kmod, linux-base (>= 4.3~)
config-files linux-image-amd64 linux-image-6.98-amd64 (= 6.98-1)"""


@pytest.mark.parametrize("manager", MANAGERS)
def test_what_is_missing_is_named_with_its_package(tmp_path, manager):
    release, advice = MANAGERS[manager]
    programs = {"uname": f"echo {release}", "id": "echo 0", **({manager: "exit 9"} if manager else {})}
    if manager == "apt-get":
        programs["dpkg-query"] = f"echo '{KERNELS}'"
        (tmp_path / "sed").symlink_to(shutil.which("sed"))
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    done = subprocess.run(
        [shutil.which("sh"), SOURCES / "install.sh", "--check"],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"  missing: headers of the running kernel {release} ({advice})" in done.stderr
    assert done.stderr.endswith("install.sh: nothing was installed\n")


def test_who_is_not_root_is_told_so(tmp_path):
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for option in ("--check", "--uninstall"):
        done = subprocess.run(
            ["sh", SOURCES / "install.sh", option], env={"PATH": path}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "install.sh: run it as root\n")


@pytest.mark.parametrize("script", ["install.sh", "qmpalloc-collector.init"])
def test_the_scripts_are_read_by_a_plain_shell(script):
    assert subprocess.run(["sh", "-n", SOURCES / script], capture_output=True, check=True).stderr == b""


def test_the_collector_is_written_for_python_3_9():
    """Its own Python is the guest's; what RHEL 9 has is the oldest."""
    for file in SOURCES.glob("*.py"):
        ast.parse(file.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("arguments", [["--frobnicate"], ["--root"], ["--root", "/no/such/directory"]])
def test_installer_refuses_nonsense(arguments):
    done = install(*arguments)
    assert done.returncode != 0
    assert done.stderr


def test_the_compilers_files_are_handed_over_and_forgotten(tmp_path):
    large, small = tmp_path / "lib LLVM.so", tmp_path / "libtiny.so"
    large.write_bytes(bytes(2 << 20))
    small.write_bytes(b"x")
    line = "7f00-7f01 r-xp 00000000 fe:00 1234                       "
    maps = (
        f"{line}{large}\n{line}{large}\n{line}{small}\n{line}/gone (deleted)\n{line}[heap]\n7f00-7f01 rw-p 0 00:00 0\n"
    )
    descriptors = open_mapped_files(maps)
    assert [Path(f"/proc/self/fd/{fd}").readlink() for fd in descriptors] == [large]
    forget_compiler(descriptors)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptors[0])


# -------------------------------------------------------------------------------------------------------------- reader


class Kernel:
    """Counters and a monotonic clock, and a wait that passes time and may oversleep."""

    def __init__(self, monkeypatch, directory, waits):
        self.now_ns, self.waits, self.samples = 7_000_000_000, iter(waits), []
        self.file = directory / "counters.json"
        monkeypatch.setattr(bpf, "recursion_misses", lambda fd: fd)
        monkeypatch.setattr("time.monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
        monkeypatch.setattr(signal, "sigtimedwait", self.wait)

    def read(self):
        return [1] * len(SLOTS)

    def wait(self, _, seconds):
        self.samples.append(parse(self.file.read_bytes()))
        late_s = next(self.waits, None)
        if late_s is None:
            return object()
        self.now_ns += round((seconds + late_s) * 1e9)
        return None


def test_the_reader_counts_what_it_misses_and_leaves_nothing(tmp_path, monkeypatch):
    """A reader that did not run for a while goes on at its ticks, and the next file tells what is missing."""
    kernel = Kernel(monkeypatch, tmp_path, [0.0, 3.2, 0.0])
    everything = {"accesses", "inserts_read"}
    reader.run(CountersFile(str(tmp_path)), Series("00112233aabbccdd", 1000), kernel, [2, 3], everything, None, {})
    assert [sample.monotonic_ns for sample in kernel.samples] == [
        7_000_000_000,
        8_000_000_000,
        12_200_000_000,
        13_000_000_000,
    ]
    assert [sample.collector.intervals_missed for sample in kernel.samples] == [0, 0, 0, 3]
    assert [sample.sequence for sample in kernel.samples] == [0, 1, 2, 3]
    assert kernel.samples[0].counters.events_lost == 1 + 2 + 3  # no room, and runs that were left out
    assert kernel.samples[0].counters.evictions is None
    assert tree(tmp_path) == []


def test_the_reader_switches_when_the_duty_cycle_wants_it_and_publishes_its_estimate(tmp_path, monkeypatch):
    kernel, done = Kernel(monkeypatch, tmp_path, [0.0] * 4), []

    class Duty:
        sampling = False

        def end_interval(self, accesses, misses):
            return 1_000 + accesses + misses

        def part(self):
            return {"share": 0.1, "attached_ms": 5, "sampled": 0, "accesses_variance": 7}

        def steps(self, end_ns):
            yield end_ns - 600_000_000, lambda: done.append(kernel.now_ns)
            yield end_ns - 500_000_000, lambda: done.append(kernel.now_ns)

    series = Series("00112233aabbccdd", 1000)
    reader.run(CountersFile(str(tmp_path)), series, kernel, [2], {"accesses", "inserts_read"}, None, {}, Duty())
    assert done == [7_400_000_000, 7_500_000_000, 8_400_000_000]
    assert kernel.samples[0].counters.accesses == 1_000 + 2 + 1
    assert kernel.samples[0].counters.inserts_read == 1
    assert kernel.samples[0].duty.accesses_variance == 7
    assert tree(tmp_path) == []


def test_what_stage_one_passes_on_stage_two_understands(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(bpf, "keep_resident", lambda: None)
    monkeypatch.setattr(reader, "run", lambda *arguments: seen.append(arguments))

    def execv(_, argv):
        assert reader.main(argv[argv.index("-c") + 3 :]) == 0
        raise SystemExit

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(os, "set_inheritable", lambda *_: None)
    monkeypatch.setattr(reader.Ring, "of_map", lambda fd: fd)
    monkeypatch.setattr(reader.bpf, "Table", lambda fd: fd)
    monkeypatch.setattr(reader, "Sampler", lambda *arguments: arguments)
    monkeypatch.setattr(collector, "open_mapped_files", lambda _: [])
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])

    class Module:
        read, fault = b"kretfunc__filemap_read", b"kretfunc__filemap_fault"
        kfunc_entry_fds, kfunc_exit_fds, raw_tracepoint_fds = {}, {read: 5, fault: 4}, {}
        funcs = {read: types.SimpleNamespace(fd=6), fault: types.SimpleNamespace(fd=7)}  # noqa: RUF012

        def __getitem__(self, name):
            return types.SimpleNamespace(map_fd=8)

    series = Series("00112233aabbccdd", 500, 4)
    monkeypatch.setattr(bpf, "PerCpuCounters", lambda fd, *_: fd)
    monkeypatch.setattr(bpf, "Link", lambda *fds: fds)
    monkeypatch.setattr(reader, "Duty", lambda link, share, *, burst, **_: (link, share, burst > 0))
    cases = (([], True, 1.0), (["filemap_splice_read", "filemap_fault"], False, 0.1), ([], True, 0.25))
    for missing, sampling, share in cases:
        with pytest.raises(SystemExit):
            collector.become_reader(
                Module(), tmp_path, series, {"accesses", "evictions"}, missing, sampling=sampling, duty=share
            )
        file, passed, counters_fd, program_fds, counted, sampler, parts, duty = seen.pop()
        assert parts == {}
        assert duty == (None if share == 1.0 else ((5, 6), share, sampling))
        assert sampler == ((str(tmp_path), passed, SLOTS, 8, 8, 8) if sampling else None)
        assert file.path == str(tmp_path / "counters.json")
        assert (passed.start_id, passed.interval_ms, passed.sequence) == ("00112233aabbccdd", 500, 4)
        assert (passed.missing_hooks, counters_fd, program_fds, counted) == (
            missing,
            8,
            [6, 7],
            {"accesses", "evictions"},
        )
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
