"""The file of a sweep: TOML in, a `Sweep` out, and the tasks that follow from it. Format: ``docs/sweeps.md``."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from qmpalloc.config import Duration, Size
from qmpalloc.config.convert import Mistakes
from qmpalloc.config.toml import read_tables, read_text
from qmpalloc.errors import ConfigError
from qmpalloc.experiment.spec.access import Access
from qmpalloc.experiment.spec.parsing import load as load_experiment
from qmpalloc.experiment.spec.parsing import read_access
from qmpalloc.experiment.spec.plan import planned
from qmpalloc.experiment.spec.scaling import scale
from qmpalloc.experiment.spec.schema import LRU_FLAVOURS, Lru, Specification
from qmpalloc.experiment.store.directory import chosen, files_of
from qmpalloc.policy import load as load_policy
from qmpalloc.sim.mixes import MIXES, RATE, Mix, MixedLoad
from qmpalloc.units import GIB

DOCS = "see docs/sweeps.md"


class SweepKeys(Struct, frozen=True, kw_only=True):
    """``[sweep]``.

    Attributes:
        name: Letters, digits, ``-``, ``_`` and ``.``.
        sizes: Budgets, in times of each load's own.
        seeds: Of the references.
        lru: Page replacements of the guests.
        interval: Time between decisions.
        warm_up: How long a static split comes before, which is not counted.
        duration: How long the policy then decides; counted.
    """

    name: str
    sizes: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (1, 2, 3)
    lru: tuple[Lru, ...] = ("multi-gen",)
    interval: Duration = Duration(5.0)
    warm_up: Duration = Duration(80.0)
    duration: Duration = Duration(220.0)


class PolicyKeys(Struct, frozen=True, kw_only=True):
    """``[[policy]]``: a policy, with one or several values of some settings.

    Attributes:
        policy: Name of a policy, or ``module:attribute``.
        settings: The same in all.
        grid: Setting to the values that it takes, each with each of the others.
    """

    policy: str
    settings: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}


class LoadKeys(Struct, frozen=True, kw_only=True):
    """``[[load]]``: a mix by its name, or guests of one's own."""

    mix: str = ""
    name: str = ""
    budget: Size = Size(0)
    guest: tuple[Any, ...] = ()


class _LoadGuestKeys(Struct, frozen=True, kw_only=True):
    access: Any
    file: Size = Size(GIB)
    rate: float = RATE


class ExperimentKeys(Struct, frozen=True, kw_only=True):
    """``[[experiment]]``: an experiment file, whose runs are made on real guests.

    Attributes:
        file: Beside the sweep's.
        scales: It is run at each.
        repeats: Instead of the file's; 0: as there.
    """

    file: str
    scales: tuple[str, ...] = ("1",)
    repeats: int = 0


class PolicyChoice(Struct, frozen=True, kw_only=True):
    """A policy with one value of each setting; `name` tells it from the others."""

    name: str
    policy: str
    settings: dict[str, Any]


class ModelTask(Struct, frozen=True, kw_only=True, tag="model"):
    """One run in the model. All that its outcome depends on but the code.

    Attributes:
        load: Its guests and their budget.
        size: Times that budget.
        lru: A name of `qmpalloc.curves.simulation.POLICIES`.
    """

    load: Mix
    policy: PolicyChoice
    size: float
    lru: str
    seed: int
    interval_s: float
    warm_up_s: float
    duration_s: float


class GuestsTask(Struct, frozen=True, kw_only=True, tag="guests"):
    """One run of an experiment on real guests.

    Attributes:
        experiment: Name of its directory in the sweep's.
        files: Name to content of ``experiment.toml`` and of what lies beside it and is needed.
        scale: As a fraction.
        repeats: Of the experiment.
        arm: Which arm.
        repeat: Which repeat.
    """

    experiment: str
    files: dict[str, bytes]
    scale: str
    repeats: int
    arm: str
    repeat: int


Task = ModelTask | GuestsTask


def key_of(task: Task) -> str:
    """Return a name for a task that is the same for the same task, in whatever file it stands."""
    found = msgspec.json.encode(task, order="deterministic")
    return f"{task.__struct_config__.tag}-{hashlib.sha256(found).hexdigest()[:20]}"


class RealExperiment(Struct, frozen=True, kw_only=True):
    """An experiment of a sweep, at one scale.

    Attributes:
        name: Of its directory.
        files: As of its tasks.
        specification: Scaled, with the repeats asked for.
    """

    name: str
    files: dict[str, bytes]
    specification: Specification

    def tasks(self) -> tuple[GuestsTask, ...]:
        """Return its runs in the planned order."""
        found = self.specification
        return tuple(
            GuestsTask(
                experiment=self.name, files=self.files, scale=found.scale, repeats=found.repeats,
                arm=run.arm, repeat=run.repeat,
            )
            for run in planned(found)
        )  # fmt: skip


class Sweep(Struct, frozen=True, kw_only=True):
    """A whole sweep, validated.

    Attributes:
        name: Of the sweep.
        file: Where it came from, absolute.
        policies: The first is what the others are compared with.
        models: Runs in the model.
        experiments: Whose runs are made on real guests.
    """

    name: str
    file: str
    policies: tuple[PolicyChoice, ...]
    models: tuple[ModelTask, ...]
    experiments: tuple[RealExperiment, ...]

    @property
    def tasks(self) -> dict[str, Task]:
        """All of them by their keys, in order: those of the model first."""
        real: list[Task] = [task for each in self.experiments for task in each.tasks()]
        return {key_of(task): task for task in [*self.models, *real]}

    @property
    def own_modules(self) -> tuple[Path, ...]:
        """The files of users' own policies that lie beside the sweep's: workers need them."""
        names = {each.policy.partition(":")[0].partition(".")[0] for each in self.policies if ":" in each.policy}
        return tuple(path for name in sorted(names) if (path := Path(self.file).with_name(f"{name}.py")).is_file())


def load(path: Path) -> Sweep:
    """Read and validate the file of a sweep.

    Raises:
        ConfigError: With file, dotted key and hint. Several mistakes are reported together, one per line.
    """
    return parse(read_text(path, example="see {examples}/sweep.toml"), file=path.absolute())


def parse(text: str, *, file: Path) -> Sweep:
    """Validate the text of a sweep; experiments and users' own policies are looked for beside `file`.

    Raises:
        ConfigError: As `load`.
    """
    data = read_tables(text, file=file, brackets="[[policy]], [[load]], [[load.guest]] and [[experiment]] have two")
    mistakes = Mistakes(str(file))
    known = {"sweep", "policy", "load", "experiment"}
    for key in sorted(data.keys() - known):
        mistakes.add(key, "unknown table", hint="known are [sweep], [[policy]], [[load]] and [[experiment]]")
    keys = mistakes.convert(data.get("sweep"), SweepKeys, "sweep", missing=DOCS)
    policies = [
        choice
        for key, table in _tables(data, "policy", mistakes)
        if (found := mistakes.convert(table, PolicyKeys, key, missing=DOCS)) is not None
        for choice in _choices(found, key, mistakes, str(file))
    ]
    tables = _tables(data, "load", mistakes)
    loads = [found for key, table in tables if (found := _load(table, key, mistakes)) is not None]
    real = [
        each
        for key, table in _tables(data, "experiment", mistakes)
        if (found := mistakes.convert(table, ExperimentKeys, key, missing=DOCS)) is not None
        for each in _experiments(found, key, mistakes, file)
    ]
    if not tables and not real:
        mistakes.add("load", "nothing is to be run", hint="give a [[load]] for the model, or an [[experiment]]")
    if tables and not policies:
        mistakes.add("policy", "no policy is given", hint="add a [[policy]] table for each")
    if keys is not None:
        _check(keys, mistakes)
    for key, names in (("policy", policies), ("load", loads), ("experiment", real)):
        found_names = [each.name for each in names]
        for name in sorted({name for name in found_names if found_names.count(name) > 1}):
            mistakes.add(key, f"{name!r} is there twice", hint="leave one out")
    mistakes.raise_if_any()
    models = tuple(
        ModelTask(
            load=each, policy=policy, size=size, lru=LRU_FLAVOURS[lru], seed=seed,
            interval_s=float(keys.interval), warm_up_s=float(keys.warm_up), duration_s=float(keys.duration),
        )
        for each, lru, size, seed, policy in itertools.product(loads, keys.lru, keys.sizes, keys.seeds, policies)
    )  # fmt: skip
    return Sweep(name=keys.name, file=str(file), policies=tuple(policies), models=models, experiments=tuple(real))


def _tables(data: Mapping[str, Any], key: str, mistakes: Mistakes) -> list[tuple[str, Any]]:
    value = data.get(key, [])
    if not isinstance(value, list):
        mistakes.add(key, "is one table", hint=f"write [[{key}]] with two brackets")
        return []
    return [(f"{key}[{index}]", table) for index, table in enumerate(value)]


def _check(keys: SweepKeys, mistakes: Mistakes) -> None:
    if not keys.name or not all(part.isalnum() or part in "-_." for part in keys.name) or keys.name[0] == ".":
        mistakes.add("sweep.name", f"{keys.name!r} is no name", hint="letters, digits, '-', '_' and '.'")
    for name in ("sizes", "seeds", "lru"):
        values = getattr(keys, name)
        if not values or len(set(values)) < len(values):
            mistakes.add(f"sweep.{name}", "is empty, or has a value twice", hint="each value once")
    if any(not size > 0 for size in keys.sizes):
        mistakes.add("sweep.sizes", "must be above 0", hint="times the budget of each load, e.g. [0.75, 1, 1.5]")
    for name in ("interval", "duration"):
        if not getattr(keys, name) >= 1:
            mistakes.add(f"sweep.{name}", "must be at least 1s", hint=DOCS)


def _choices(keys: PolicyKeys, key: str, mistakes: Mistakes, file: str) -> Iterator[PolicyChoice]:
    """Yield a policy with each combination of its settings, once it is certain that there is such a policy."""
    for values in itertools.product(*keys.grid.values()):
        chosen_here = dict(zip(keys.grid, values, strict=True))
        words = [f"{name}={value}" for name, value in (keys.settings | chosen_here).items()]
        found = PolicyChoice(
            name=" ".join([keys.policy, *words]), policy=keys.policy, settings=keys.settings | chosen_here
        )
        try:
            load_policy(found.policy, found.settings, file=file)
        except ConfigError as error:
            for each in error.each or (error,):
                where = each.key.removeprefix("policy.")
                where = "policy" if where == "name" else f"settings.{where}"
                mistakes.add(f"{key}.{where}", each.reason, hint=each.hint)
            return
        yield found


def _load(table: Any, key: str, mistakes: Mistakes) -> Mix | None:
    keys = mistakes.convert(table, LoadKeys, key, missing=DOCS)
    if keys is None:
        return None
    if keys.mix:
        found = next((mix for mix in MIXES if mix.name == keys.mix), None)
        if found is None:
            mistakes.add(f"{key}.mix", f"no mix is called {keys.mix!r}", hint=f"{', '.join(m.name for m in MIXES)}")
        if keys.guest or keys.name or keys.budget:
            mistakes.add(key, "has a mix and guests of its own", hint="either mix alone, or name, budget and guests")
        return found
    for name in ("name", "budget", "guest"):
        if not getattr(keys, name):
            mistakes.add(f"{key}.{name}", "missing", hint="or name one of the built-in mixes with mix")
    parts = []
    for index, item in enumerate(keys.guest):
        where = f"{key}.guest[{index}]"
        guest = mistakes.convert(item, _LoadGuestKeys, where, missing=DOCS)
        access: Access | None = read_access(guest.access, f"{where}.access", mistakes) if guest is not None else None
        if guest is not None and access is not None:
            parts.append(MixedLoad(access=access, file_bytes=int(guest.file), accesses_per_s=guest.rate))
    return Mix(name=keys.name, budget_bytes=int(keys.budget), loads=tuple(parts))


def _experiments(keys: ExperimentKeys, key: str, mistakes: Mistakes, file: Path) -> Iterator[RealExperiment]:
    path = file.parent / keys.file
    try:
        text = read_text(path, example="it is looked for beside the sweep's file")
        given = load_experiment(path)
        for factor in keys.scales:
            found = chosen(scale(given, Fraction(factor)), repeats=keys.repeats or given.repeats)
            name = f"{found.name}-{found.scale.replace('/', '_')}"
            yield RealExperiment(name=name, files=files_of(found, text), specification=found)
    except ConfigError as error:
        mistakes.add(f"{key}.file", str(error))
    except (ValueError, ZeroDivisionError):
        mistakes.add(f"{key}.scales", "not all are fractions", hint='for example ["1/4", "1/2"]')
