"""Sweeps on a real scheduler and workers in processes of their own, over loopback: what is run, and what goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import qmpalloc
from qmpalloc.errors import ConfigError, HostError, UnreachableError
from qmpalloc.sweep import engine
from qmpalloc.sweep.spec import parse
from qmpalloc.sweep.store import SweepDirectory
from qmpalloc.sweep.work import code_digest, work

pytest.importorskip("distributed")
pytestmark = pytest.mark.timeout(300)  # processes that import much, one after the other

ROOT = Path(qmpalloc.__file__).parents[1]
EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = """
[sweep]
name = "small"
seeds = [1, 2, 3, 4]
interval = "2s"
warm_up = "4s"
duration = "20s"

[[policy]]
policy = "{policy}"
[[policy]]
policy = "paper"
[[policy]]
policy = "curve"

[[load]]
name = "two"
budget = "700MiB"
[[load.guest]]
access = {{ distribution = "normal", deviation = 0.2 }}
file = "128MiB"
rate = 8000
[[load.guest]]
access = {{ distribution = "zipf" }}
file = "256MiB"
rate = 16000
"""
REAL = '[sweep]\nname = "real"\n[[experiment]]\nfile = "smoke.toml"\nrepeats = 2\n'


@pytest.fixture
def small(tmp_path):
    return parse(TEXT.format(policy="static"), file=tmp_path / "small.toml")


class Cluster:
    """A scheduler and its workers, each a process."""

    def __init__(self, place):
        self._file, self._processes = place / "scheduler.json", []
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.address = self._until(lambda: json.loads(self._file.read_text())["address"])

    def worker(self, *options, environment=None, preload=None, nanny=False):
        options = [*options, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
        options += [] if nanny else ["--no-nanny"]
        options += ["--local-directory", str(self._file.parent)]
        if preload is not None:
            options += ["--preload", str(preload)]
        return self._start("worker", *options, environment=environment)

    def _start(self, kind, *options, environment=None):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", str(self._file), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        with (self._file.parent / f"{kind}{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self._file.parent)
        self._processes.append(process)
        return process

    def _until(self, ask):
        while self.scheduler.poll() is None:
            try:
                return ask()
            except (FileNotFoundError, json.JSONDecodeError):
                time.sleep(0.05)
        raise AssertionError((self._file.parent / "scheduler0.log").read_text())

    def close(self):
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)  # a worker ends with its nanny
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    made.close()


@contextmanager
def opened(cluster, sweep):
    with engine.open_cluster(sweep, scheduler=cluster.address) as found:
        yield found


def refused(cluster, sweep, kind, told):
    """Return the error with which a sweep is refused."""
    with pytest.raises(kind, match=told) as caught, opened(cluster, sweep):
        pass
    return caught.value


def wait_for_workers(cluster, number):
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(number, timeout=120)


def test_three_workers_one_of_them_killed_have_the_same_results_as_one_process(cluster, small, tmp_path):
    workers = [cluster.worker() for _ in range(3)]
    wait_for_workers(cluster, 3)
    directory = SweepDirectory(tmp_path / "out", small, "", code=code_digest())
    with opened(cluster, small) as found:
        assert len(found.workers) == 3
        for number, done in enumerate(found.run(small.tasks, directory.disks), 1):
            directory.add(done)
            if number == 3:
                workers[0].kill()
    assert directory.left == []
    alone = {key: work(key, task, code_digest(), {}).row for key, task in small.tasks.items()}
    assert {key: done.row for key, done in directory.done.items()} == alone
    assert len(set(map(str, alone.values()))) == len(small.tasks)


def test_a_cluster_of_this_host_needs_no_scheduler(small):
    some = dict(list(small.tasks.items())[:3])
    with engine.open_cluster(small, workers=2) as found:
        assert [worker.guests for worker in sorted(found.workers, key=lambda worker: worker.guests)] == [0, 1]
        rows = {done.key: done.row for done in found.run(some, lambda _: {})}
    assert rows == {key: work(key, task, code_digest(), {}).row for key, task in some.items()}


def test_the_command_goes_on_where_it_was_interrupted(tmp_path, small):
    (tmp_path / "small.toml").write_text(TEXT.format(policy="static"))
    words = ["sweep", "small.toml", "--workers", "1", "--out", "out"]
    how = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "qmpalloc", *words]
    with subprocess.Popen(command, start_new_session=True, **how) as first:
        while not (tmp_path / "out" / "done.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGINT)  # as a terminal does, the workers too
        said = first.communicate()[0]
    assert first.returncode == 130
    assert "interrupted: what is done is kept; the same command goes on" in said
    directory = SweepDirectory(tmp_path / "out", small, "", code=code_digest())
    assert 0 < len(directory.done) < 12
    second = subprocess.run(command, check=True, **how)
    assert f"{len(directory.left)} are left to do" in second.stdout
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 13


OWN = """
import os
from qmpalloc.model import hold

class Own:
    def decide(self, snapshot):
        return hold(snapshot, "so far")

def dies(snapshot):
    os._exit(1)
"""


def test_workers_get_a_policy_of_ones_own(cluster, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.py").write_text(OWN)
    sweep = parse(TEXT.format(policy="mine:Own"), file=tmp_path / "there" / "small.toml")
    cluster.worker()
    with opened(cluster, sweep) as found:
        (done,) = found.run(dict(list(sweep.tasks.items())[:1]), lambda _: {})
    assert done.failed == ""
    assert done.row.policy == "mine:Own"


def test_a_task_that_kills_its_workers_is_given_up_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(OWN)
    sweep = parse(TEXT.format(policy="mine:dies"), file=tmp_path / "small.toml")
    some = dict(list(sweep.tasks.items())[:2])
    with engine.open_cluster(sweep, workers=1) as found:
        ended = {sweep.tasks[done.key].policy.name: done.failed for done in found.run(some, lambda _: {})}
    assert "each worker that began it was lost" in ended["mine:dies"]
    assert ended["paper"] == ""


def test_a_worker_that_nobody_starts_again_is_replaced(small, monkeypatch):
    import dask
    from distributed.nanny import Nanny

    async def leave(nanny, exit_code):
        await nanny._unregister()

    monkeypatch.setattr(Nanny, "_on_worker_exit", leave)
    few = dict(list(small.tasks.items())[:3])
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "200ms"}),
        engine.open_cluster(small, workers=1) as found,
    ):
        over, (pid,) = [], found._client.run(os.getpid).values()
        for done in found.run(few, lambda _: {}):
            if not over:
                os.kill(pid, signal.SIGKILL)
            over.append(done.failed)
    assert over == [""] * 3


def test_a_scheduler_that_loses_all_its_workers_is_told(cluster, small, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "WORKERS_S", 0.5)
    worker = cluster.worker()
    wait_for_workers(cluster, 1)
    with opened(cluster, small) as found, pytest.raises(UnreachableError, match="has no workers any more") as caught:
        _ = [worker.kill() for _ in found.run(small.tasks, lambda _: {})]
    assert "what is done is kept" in caught.value.hint


def test_no_scheduler_and_what_is_no_address_are_told(small, monkeypatch):
    monkeypatch.setattr(engine, "REACH_S", 0.5)
    with (
        pytest.raises(UnreachableError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1") as caught,
        engine.open_cluster(small, scheduler="tcp://127.0.0.1:1"),
    ):
        pass
    assert "dask scheduler" in caught.value.hint
    with (
        pytest.raises(ConfigError, match="'carrier pigeon://x' is no address of a scheduler"),
        engine.open_cluster(small, scheduler="carrier pigeon://x"),
    ):
        pass


def test_a_scheduler_without_workers_is_told(cluster, small, monkeypatch):
    monkeypatch.setattr(engine, "WORKERS_S", 0.5)
    caught = refused(cluster, small, UnreachableError, f"the scheduler {cluster.address} has no workers")
    assert caught.hint == f"dask worker {cluster.address} --nthreads 1"


def test_a_worker_with_another_qmpalloc_and_one_without_are_told_by_host(cluster, small, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ROOT / "qmpalloc", other / "qmpalloc", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "qmpalloc" / "units.py").open("a") as file:
        file.write("# changed\n")
    worker = cluster.worker(environment={"PYTHONPATH": str(other)})
    refused(cluster, small, HostError, r"the worker tcp://\S+ on host \S+ has another qmpalloc than this host")
    worker.kill()
    worker.wait()
    (tmp_path / "without.py").write_text("import sys\nsys.modules['qmpalloc'] = None\n")
    cluster.worker(preload=tmp_path / "without.py")
    wait_for_workers(cluster, 1)
    refused(cluster, small, HostError, r"the worker tcp://\S+ cannot run qmpalloc: ModuleNotFoundError")


def test_a_scheduler_that_is_lost_is_told_and_what_is_done_is_kept(cluster, small, tmp_path):
    cluster.worker()
    directory = SweepDirectory(tmp_path / "out", small, "", code=code_digest())

    def run():
        with opened(cluster, small) as found:
            for done in found.run(small.tasks, directory.disks):
                directory.add(done)
                if cluster.scheduler.poll() is None:
                    cluster.scheduler.kill()
                    cluster.scheduler.wait()

    with pytest.raises(UnreachableError, match="is lost") as caught:
        run()
    assert "what is done is kept" in caught.value.hint
    assert 0 < len(SweepDirectory(tmp_path / "out", small, "", code=code_digest()).done) < len(small.tasks)


FAKES = """
import time
from qmpalloc.experiment.store.records import DiskCalibration, Manifest, Outcome
from qmpalloc.sweep import guests

running, TAKES_S = 0, 0.2

def describe(specification, prepared, footprints, *, arms, command):
    return Manifest(
        name=specification.name, file=specification.file, scale=specification.scale,
        arms=tuple(arm.name for arm in specification.arms), repeats=specification.repeats, command=command,
        created_wall=0.0, accelerator={}, images={}, versions={}, host={}, footprints={},
    )

async def run_arm(directory, run, prepared, traces, live):
    global running
    running += 1
    time.sleep(TAKES_S)
    files = directory.run(run)
    files.begin()
    failed = "" if running == 1 else "two at a time"
    outcome = Outcome(arm=run.arm, repeat=run.repeat, started_wall=0.0, total_s=1.0, load_s=None, failed=failed)
    files.write_outcome(outcome)
    running -= 1
    return outcome

guests.prepare_experiment = lambda specification, report: None
guests.describe, guests.run_arm = describe, run_arm
"""


def with_qemu(place, *, qemu=True):
    """Return an environment in which there is a QEMU, as far as that is looked at, or none."""
    place.mkdir(exist_ok=True)
    if qemu:
        (place / "qemu-system-x86_64").symlink_to("/bin/true")
    return {"PATH": str(place)}


def test_real_guests_are_run_one_at_a_time_by_the_worker_that_may(cluster, tmp_path):
    (tmp_path / "fakes.py").write_text(FAKES)
    cluster.worker()
    cluster.worker("--resources", "guests=1", preload=tmp_path / "fakes.py", environment=with_qemu(tmp_path / "bin"))
    wait_for_workers(cluster, 2)
    sweep = parse(REAL, file=EXAMPLES / "real.toml")
    directory = SweepDirectory(tmp_path / "out", sweep, REAL, code=code_digest())
    with opened(cluster, sweep) as found:
        for done in found.run(sweep.tasks, directory.disks):
            directory.add(done)
    assert {done.failed for done in directory.done.values()} == {""}
    assert directory.left == []
    assert len(directory.experiment(sweep.experiments[0]).outcomes()) == 4


@pytest.mark.parametrize("lost", [False, True])
def test_the_arms_of_a_repeat_run_on_one_host_unless_it_is_lost(cluster, tmp_path, lost, monkeypatch):
    workers = {}
    for host, takes_s in (("a", 0.5), ("b", 0.1)):
        fakes = tmp_path / f"fakes_{host}.py"
        fakes.write_text(f"import socket\nsocket.gethostname = lambda: {host!r}\n{FAKES}\nTAKES_S = {takes_s}\n")
        environment = with_qemu(tmp_path / host)
        workers[host] = cluster.worker("--resources", "guests=1", preload=fakes, environment=environment)
    wait_for_workers(cluster, 2)
    sweep = parse(REAL.replace("repeats = 2", "repeats = 4"), file=EXAMPLES / "real.toml")
    directory = SweepDirectory(tmp_path / "out", sweep, REAL, code=code_digest())
    with opened(cluster, sweep) as found:
        for done in found.run(sweep.tasks, directory.disks):
            directory.add(done)
            if lost and done.host == "a":
                workers["b"].kill()
                monkeypatch.setattr(engine, "WORKERS_S", 0.5)
    assert directory.left == []
    hosts = {}
    for key, done in directory.done.items():
        hosts.setdefault(sweep.tasks[key].repeat, set()).add(done.host)
    if lost:
        assert "a" in set.union(*hosts.values())
    else:
        assert all(len(names) == 1 for names in hosts.values())
        assert set.union(*hosts.values()) == {"a", "b"}


DIES = """
import os
from qmpalloc.sweep import guests
run_arm, MARK, TIMES = guests.run_arm, {mark!r}, {times}

async def dies(directory, run, prepared, traces, live):
    with open(MARK, "a") as file:
        file.write("x")
    if run.arm == "rule" and run.repeat == 1 and os.path.getsize(MARK) <= TIMES:
        os._exit(1)
    return await run_arm(directory, run, prepared, traces, live)

guests.run_arm = dies
"""


@pytest.mark.parametrize("times", [2, 99])
def test_a_run_is_sent_again_to_its_host_when_the_worker_is_back(cluster, tmp_path, times):
    fakes = tmp_path / "fakes.py"
    fakes.write_text(FAKES + DIES.format(mark=str(tmp_path / "mark"), times=times))
    cluster.worker("--resources", "guests=1", preload=fakes, environment=with_qemu(tmp_path / "bin"), nanny=True)
    cluster.worker(nanny=True)
    wait_for_workers(cluster, 2)
    sweep = parse(REAL, file=EXAMPLES / "real.toml")
    with opened(cluster, sweep) as found:
        ended = {
            (sweep.tasks[done.key].arm, sweep.tasks[done.key].repeat): done.failed
            for done in found.run(sweep.tasks, lambda _: {})
        }
    told = ended.pop(("rule", 1))
    assert set(ended.values()) == {""}
    assert len(ended) == 3
    assert told == "" if times == 2 else "each worker that began it was lost" in told


WAITS = """
import trio
from pathlib import Path
PLACE = Path({place!r})

async def run_arm(directory, run, prepared, traces, live):
    try:
        (PLACE / "begun").touch()
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(6)  # longer than Dask waits for a worker to end
            (PLACE / "undone").touch()

guests.run_arm = run_arm
"""


@pytest.mark.parametrize("scheduler", [False, True])
def test_at_ctrl_c_a_run_on_real_guests_undoes_what_it_changed(cluster, tmp_path, scheduler):
    fakes = tmp_path / "fakes.py"
    fakes.write_text(FAKES + WAITS.format(place=str(tmp_path)))
    environment = {"PYTHONPATH": str(ROOT), **with_qemu(tmp_path / "bin")}
    (tmp_path / "real.toml").write_text(REAL.replace("smoke.toml", str(EXAMPLES / "smoke.toml")))
    words = ["sweep", str(tmp_path / "real.toml"), "--out", str(tmp_path / "out"), "--workers", "1"]
    if scheduler:
        cluster.worker("--resources", "guests=1", preload=fakes, environment=environment, nanny=True)
        wait_for_workers(cluster, 1)
        words += ["--scheduler", cluster.address]
    environment["DASK_DISTRIBUTED__WORKER__PRELOAD"] = json.dumps([str(fakes)])
    command = [sys.executable, "-m", "qmpalloc", *words]
    with subprocess.Popen(command, start_new_session=True, env={**os.environ, **environment}) as process:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 130
    assert (tmp_path / "undone").exists()


def test_workers_that_cannot_run_guests_are_told(cluster, tmp_path):
    sweep = parse(REAL, file=EXAMPLES / "real.toml")
    cluster.worker()
    nobody = refused(cluster, sweep, ConfigError, "no worker may boot guests")
    assert "--resources guests=1" in nobody.hint
    first = cluster.worker("--resources", "guests=1", environment=with_qemu(tmp_path / "none", qemu=False))
    wait_for_workers(cluster, 2)
    refused(cluster, sweep, HostError, r"on host \S+ may boot guests, and finds no QEMU")
    first.kill()
    first.wait()
    for number in range(2):
        cluster.worker("--resources", "guests=1", environment=with_qemu(tmp_path / f"bin{number}"))
    wait_for_workers(cluster, 3)
    refused(cluster, sweep, HostError, "would run the guests of several runs at once")
