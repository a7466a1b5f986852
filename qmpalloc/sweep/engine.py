"""Hands the tasks of a sweep to Dask's workers: of a cluster on this host, or of a scheduler that exists.

Dask does the rest: it sends tasks where there is room, again when a worker is lost, and answers back as they come.
"""

from __future__ import annotations

import importlib
import logging
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from qmpalloc.errors import ConfigError, HostError, UnreachableError
from qmpalloc.experiment.store.records import DiskCalibration
from qmpalloc.sweep.guests import stop_run
from qmpalloc.sweep.spec import GuestsTask, ModelTask, Sweep, Task
from qmpalloc.sweep.work import Done, HostFacts, code_digest, facts, work

if TYPE_CHECKING:
    import distributed

GUESTS = "guests"
"""The resource of a worker that may boot guests: one, and one such worker on a host."""

WORKER_COMMAND = "dask worker SCHEDULER --nthreads 1"
REACH_S, WORKERS_S = 10.0, 30.0
LOOK_S = 1.0
"""How often it is looked whether there are workers, while none answers."""

LOSSES_MAX = 4
"""A run on real guests that has lost so many workers is given up, as Dask gives up those of the model."""

LOST = "each worker that began it was lost ({} last): is there memory enough?"

Disks = Callable[[str], Mapping[str, DiskCalibration]]
"""Returns host to throttle of an experiment, where it has been measured."""


class Worker(Struct, frozen=True, kw_only=True):
    """A worker of the cluster."""

    address: str
    facts: HostFacts
    guests: float


class _Host(Struct, eq=False):
    """What a host that may boot guests is at.

    Attributes:
        address: Of its worker, when it was seen last.
        runs: What it is to do of a repeat; with a `future`, the first is under way.
    """

    address: str = ""
    seen_s: float = 0.0
    runs: list[str] = []
    future: Any = None


class Cluster:
    """A scheduler with workers that run the same code as this process. Made by `open_cluster`.

    Attributes:
        workers: Those that were there at the beginning.
    """

    def __init__(
        self, client: distributed.Client, address: str, sweep: Sweep, local: distributed.SpecCluster | None
    ) -> None:
        self._client, self._address, self._local = client, address, local
        found = client.run(facts_of_worker(), on_error="return")
        resources = self._workers_now()
        for worker, told in found.items():
            if isinstance(told, BaseException):
                message = f"the worker {worker} cannot run qmpalloc: {type(told).__name__}: {told}"
                raise HostError(message, hint="install qmpalloc there, in the environment of the worker")
        self._facts: dict[str, HostFacts] = found
        self._hosts: dict[str, _Host] = {}
        self.workers = [
            Worker(address=worker, facts=told, guests=resources.get(worker, {}).get("resources", {}).get(GUESTS, 0))
            for worker, told in sorted(found.items())
        ]
        _check(self.workers, sweep)

    def run(self, tasks: Mapping[str, Task], disks: Disks) -> Iterator[Done]:
        """Yield what becomes of each task as it is over: first those of the model, then those on real guests.

        So nothing else of the sweep runs beside real guests, whose times count.

        Raises:
            UnreachableError: The scheduler is lost, or all workers that can do what is left.
        """
        models = {key: task for key, task in tasks.items() if isinstance(task, ModelTask)}
        lost: list[str] = []
        yield from self._collected([self._submitted(key, task, {}) for key, task in models.items()], lost)
        # Dask suspects all tasks that a dead worker had, those that only waited too: alone, each shows what it does.
        for key in lost:
            yield from self._collected([self._submitted(key, models[key], {}, "alone")])
        yield from self._on_guests({key: task for key, task in tasks.items() if isinstance(task, GuestsTask)}, disks)

    def _on_guests(self, tasks: Mapping[str, GuestsTask], disks: Disks) -> Iterator[Done]:
        """Do all runs of a repeat on one host, so that its arms are compared on the same; on another if it is lost.

        A host is sent a run when the one before is back. Sent earlier, it would wait there, and Dask moves what waits
        to hosts that are idle. A run is for one address alone: what Dask may send elsewhere, it sends to workers
        without the resource as well. A worker that is started again has another address, so there it is sent again.
        """
        import distributed

        repeats: dict[tuple[str, int], list[str]] = {}
        for key, task in tasks.items():
            repeats.setdefault((task.experiment, task.repeat), []).append(key)
        waiting = deque(repeats.values())
        losses: Counter[str] = Counter()
        completed = distributed.as_completed(loop=self._client.loop)

        def take_back(at: _Host) -> Iterator[Done]:
            if at.future is None:
                return
            at.future.cancel()
            at.future, key = None, at.runs[0]
            losses[key] += 1
            if losses[key] == LOSSES_MAX:
                yield Done(key=at.runs.pop(0), failed=LOST.format(at.address))

        def look() -> Iterator[Done]:
            now, here = time.monotonic(), self._hosts_now()
            for host, at in self._hosts.items():
                if host not in here and at.runs and now - at.seen_s > WORKERS_S:
                    yield from take_back(at)
                    waiting.extendleft([at.runs] if at.runs else [])
                    at.runs = []
            for host, address in here.items():
                at = self._hosts.setdefault(host, _Host())
                at.seen_s = now
                if at.address != address:
                    yield from take_back(at)
                    at.address = address
                at.runs = at.runs or (waiting.popleft() if waiting else [])
                if at.runs and at.future is None:
                    key = at.runs[0]
                    at.future = self._submitted(
                        key, tasks[key], disks(tasks[key].experiment), f".{losses[key]}",
                        resources={GUESTS: 1}, workers=[address],
                    )  # fmt: skip
                    completed.add(at.future)

        def more() -> bool:
            return bool(waiting) or any(at.runs for at in self._hosts.values())

        yield from look()
        for future in self._as_they_end(completed, GUESTS, more):
            for at in self._hosts.values() if future is not None else ():
                if at.future is future:
                    done = self._done(future)
                    if done is None:
                        yield from take_back(at)
                        continue
                    at.future = None
                    del at.runs[0]
                    yield done
            yield from look()

    def stop(self) -> None:
        """Have what is under way on real guests undo what it changed, before its worker is ended or has other work."""
        busy = {at.address for at in self._hosts.values() if at.future is not None}
        if self._client.status == "running" and (busy := busy & self._workers_now().keys()):
            self._client.run(stop_run, workers=list(busy), on_error="ignore")

    def _hosts_now(self) -> dict[str, str]:
        """Return host to address of the workers that may boot guests; what comes to be while the sweep runs, too."""
        able = [address for address, worker in self._workers_now().items() if worker.get("resources", {}).get(GUESTS)]
        if new := [address for address in able if address not in self._facts]:
            found = self._client.run(facts_of_worker(), workers=new, on_error="return")
            self._facts |= {address: told for address, told in found.items() if not isinstance(told, BaseException)}
        known = {address: self._facts[address] for address in able if address in self._facts}
        here: dict[str, str] = {}
        for address, told in known.items():
            at = self._hosts.get(told.host, _Host())  # whose worker stays that of the host, whatever is started beside
            if told.qemu and told.code == code_digest() and (told.host not in here or address == at.address):
                here[told.host] = address
        return here

    def _submitted(
        self, key: str, task: Task, disks: Mapping[str, DiskCalibration], attempt: str = "", **how: Any
    ) -> distributed.Future:
        code = code_digest()
        return self._client.submit(work, key, task, code, dict(disks), key=f"{key}-{code}{attempt}", pure=False, **how)

    def _collected(self, futures: list[distributed.Future], lost: list[str] | None = None) -> Iterator[Done]:
        """Yield what became of each; those given up with their workers go to `lost` instead, where there is one."""
        import distributed

        for future in self._as_they_end(distributed.as_completed(futures, loop=self._client.loop)):
            if future is None:
                continue
            killed = future.status == "error" and isinstance(future.exception(), distributed.KilledWorker)
            done = None if killed and lost is not None else self._done(future)
            if done is not None:
                yield done
            elif lost is not None:
                lost.append(_key(future))
            else:
                yield Done(key=_key(future), failed=LOST.format("with its result,"))

    def _as_they_end(
        self, completed: distributed.as_completed, resource: str = "", more: Callable[[], bool] = lambda: False
    ) -> Iterator[distributed.Future | None]:
        """Yield each as it is over, as long as there are workers, with the resource: Dask would wait for ever.

        None is yielded after each look whether there are; the end comes when nothing is under way, nor `more` waits.
        """
        seen = looked = time.monotonic()
        while more() or not completed.is_empty():
            if completed.has_ready():
                yield from completed.next_batch(block=False)
                seen = time.monotonic()
                continue
            time.sleep(0.05)
            if (now := time.monotonic()) - looked < LOOK_S:
                continue
            looked = now
            if self._local is not None:
                self._local.scale(len(self.workers))  # a worker that ends before its nanny heard of it has no other
            if self._hosts_now() if resource else self._workers_now():
                seen = now
            elif now - seen > WORKERS_S:
                able = f" of the same code with --resources {resource}=1" if resource else ""
                hint = "start them again, then give the same command again: what is done is kept"
                message = f"the scheduler {self._address} has no workers{able} any more"
                raise UnreachableError(message, address=self._address, hint=hint)
            yield None

    def _workers_now(self) -> Mapping[str, Mapping[str, Any]]:
        workers: Mapping[str, Mapping[str, Any]] = self._client.scheduler_info(n_workers=-1)["workers"]
        return workers

    def _done(self, future: distributed.Future) -> Done | None:
        """Return what became of a task that is over, and let Dask forget it; None if it is lost with its worker."""
        if future.cancelled():
            raise UnreachableError(
                f"the scheduler {self._address} is lost", address=self._address,
                hint="start it again, then give the same command again: what is done is kept",
            )  # fmt: skip
        if future.status == "error":
            done = Done(key=_key(future), failed=_told(future.exception()))
        else:
            try:
                done = future.result(timeout=WORKERS_S)
            except TimeoutError:  # its worker ended before it was fetched: Dask would wait for ever
                done = None
        future.release()
        return done


def _key(future: distributed.Future) -> str:
    """Return the key of the task, without code and attempt."""
    return str(future.key).rpartition("-")[0]


def require_packages() -> None:
    """Make sure that what sweeps need besides is installed.

    Raises:
        HostError: It is not.
    """
    for package in ("distributed", "pyarrow"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            message = f"sweeps need Dask and pyarrow: {error.name} is not installed"
            raise HostError(message, hint="pip install 'qmpalloc[sweep]'") from error


@contextmanager
def open_cluster(sweep: Sweep, *, scheduler: str = "", workers: int = 1) -> Iterator[Cluster]:
    """Yield the workers of a scheduler, or, without one, so many processes on this host.

    Raises:
        HostError: Dask is not installed, or a worker cannot do what the sweep asks of it.
        UnreachableError: Nobody answers as a scheduler, or it has no worker.
        ConfigError: The address is none, or no worker may boot guests.
    """
    require_packages()
    import distributed

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters of it is told by us
    with ExitStack() as stack:
        local = None if scheduler else stack.enter_context(_local_cluster(workers))
        address = scheduler if local is None else local.scheduler_address
        try:
            client = stack.enter_context(distributed.Client(address, timeout=REACH_S, set_as_default=False))
        except ValueError as error:
            message = f"{address!r} is no address of a scheduler: {error}"
            raise ConfigError(message, key="--scheduler", hint="for example tcp://192.0.2.1:8786") from error
        except (OSError, TimeoutError) as error:
            hint = "start one: dask scheduler; its first lines say its address"
            raise UnreachableError(f"no scheduler answers at {address}", address=address, hint=hint) from error
        try:
            client.wait_for_workers(1 if scheduler else workers, timeout=WORKERS_S)
        except TimeoutError as error:
            hint = WORKER_COMMAND.replace("SCHEDULER", address)
            raise UnreachableError(f"the scheduler {address} has no workers", address=address, hint=hint) from error
        for path in sweep.own_modules:
            client.upload_file(str(path))
        cluster = Cluster(client, address, sweep, local)
        stack.callback(cluster.stop)
        yield cluster


def _local_cluster(workers: int) -> Any:
    """Return so many processes with a thread each, the first of which may boot guests."""
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    preload = [*dask.config.get("distributed.worker.preload"), __name__]
    here = {"host": "127.0.0.1", "dashboard_address": ":0", "dashboard": False}
    return SpecCluster(
        scheduler={"cls": Scheduler, "options": {**here, "port": 0}},
        workers={
            number: {
                "cls": Nanny,
                "options": {
                    "nthreads": 1, "resources": {} if number else {GUESTS: 1}, "silence_logs": logging.CRITICAL,
                    "preload": preload,
                },
            }
            for number in range(workers)
        },
        silence_logs=logging.CRITICAL,
    )  # fmt: skip


def dask_setup(worker: distributed.Worker) -> None:  # noqa: ARG001 - Dask's signature of what it loads first
    """Leave Ctrl-C in a terminal, which reaches a worker of this host too, to the command: it has runs end in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def facts_of_worker() -> Callable[[], HostFacts]:
    """Return what a worker is asked. Dask sends it as code, as it is nested: a worker may not have this module."""

    def ask() -> HostFacts:
        from qmpalloc.sweep.work import facts

        return facts()

    return ask


def _check(workers: list[Worker], sweep: Sweep) -> None:
    """Refuse workers that run other code, and those on which guests cannot be run as they should."""
    ours = facts()
    for worker in workers:
        if worker.facts.code != ours.code:
            message = f"the worker {worker.address} on host {worker.facts.host} has another qmpalloc than this host"
            hint = f"install the same on both (its code is {worker.facts.code}, here {ours.code}); start it anew"
            raise HostError(message, hint=hint)
    if not sweep.experiments:
        return
    booting = [worker for worker in workers if worker.guests]
    if not booting:
        hint = f"on each host with QEMU: {WORKER_COMMAND} --resources {GUESTS}=1"
        raise ConfigError("no worker may boot guests", file=sweep.file, key="experiment", hint=hint)
    by_host: dict[str, str] = {}
    for worker in booting:
        host = worker.facts.host
        if not worker.facts.qemu:
            message = f"the worker {worker.address} on host {host} may boot guests, and finds no QEMU"
            raise HostError(message, hint=f"install QEMU there, or start it without --resources {GUESTS}=1")
        if host in by_host or worker.guests > 1:
            message = f"host {host} would run the guests of several runs at once, and each would slow the others"
            hint = f"start one worker there with --resources {GUESTS}=1: {by_host.get(host, '')} {worker.address}"
            raise HostError(message, hint=hint)
        by_host[host] = worker.address


def _told(error: BaseException) -> str:
    import distributed

    if isinstance(error, distributed.KilledWorker):
        return LOST.format(error.last_worker.address)
    return f"{type(error).__name__}: {error}"
