"""The file of a sweep: TOML in, a `Sweep` out, and the tasks that follow from it. Format: ``docs/sweeps.md``."""

from __future__ import annotations

import hashlib
import itertools
import tomllib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Struct, structs

from qmpalloc.config import Duration, Size
from qmpalloc.config.convert import Mistakes, told
from qmpalloc.config.keys import Found, Name, bounds
from qmpalloc.config.toml import read_tables, read_text
from qmpalloc.errors import ConfigError
from qmpalloc.experiment.spec.access import Access
from qmpalloc.experiment.spec.parsing import load as load_experiment
from qmpalloc.experiment.spec.plan import planned
from qmpalloc.experiment.spec.scaling import scale
from qmpalloc.experiment.spec.schema import LRU_FLAVOURS, Lru, Specification
from qmpalloc.experiment.store.directory import chosen, files_of
from qmpalloc.policy.registry import resolved, wrong
from qmpalloc.sim.mixes import MIXES, RATE, Mix, MixedLoad
from qmpalloc.units import GIB, format_size

DOCS = "docs/sweeps.md"


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

    name: Name
    sizes: tuple[Annotated[float, bounds("times the budget of each load, e.g. [0.75, 1, 1.5]", gt=0)], ...] = (1.0,)
    seeds: tuple[int, ...] = (1, 2, 3)
    lru: tuple[Lru, ...] = ("multi-gen",)
    interval: Duration = Duration(5.0)
    warm_up: Duration = Duration(80.0)
    duration: Duration = Duration(220.0)

    def mistakes(self) -> Found:
        """Yield what cannot be."""
        for name in ("sizes", "seeds", "lru"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                yield name, "is empty, or has a value twice", "each value once"
        for name in ("interval", "duration"):
            if not getattr(self, name) >= 1:
                yield name, "must be at least 1s", f"see {DOCS}"


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


class LoadGuestKeys(Struct, frozen=True, kw_only=True):
    """``[[load.guest]]``: a guest, how large its file is, and how often and where it reads."""

    access: Access
    file: Size = Size(GIB)
    rate: float = RATE


class LoadKeys(Struct, frozen=True, kw_only=True):
    """``[[load]]``: a mix by its name, or guests of one's own."""

    mix: str = ""
    name: str = ""
    budget: Size = Size(0)
    guest: tuple[LoadGuestKeys, ...] = ()

    def mistakes(self) -> Found:
        """Yield what is neither."""
        if self.mix:
            if self.mix not in {mix.name for mix in MIXES}:
                yield "mix", f"no mix is called {self.mix!r}", ", ".join(mix.name for mix in MIXES)
            if self.guest or self.name or self.budget:
                yield "mix", "beside guests of its own", "either mix alone, or name, budget and guests"
            return
        for name in ("name", "budget", "guest"):
            if not getattr(self, name):
                yield name, "missing", "or name one of the built-in mixes with mix"

    def made(self) -> Mix:
        """Return the mix."""
        own = (
            MixedLoad(access=each.access, file_bytes=int(each.file), accesses_per_s=each.rate) for each in self.guest
        )
        known = {mix.name: mix for mix in MIXES}
        return known.get(self.mix) or Mix(name=self.name, budget_bytes=int(self.budget), loads=tuple(own))


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


class SweepFile(Struct, frozen=True, kw_only=True):
    """A sweep of qmpalloc, as it is written."""

    sweep: SweepKeys
    policy: tuple[PolicyKeys, ...] = ()
    load: tuple[LoadKeys, ...] = ()
    experiment: tuple[ExperimentKeys, ...] = ()


class PolicyChoice(Struct, frozen=True, kw_only=True):
    """A policy with one value of each setting.

    Attributes:
        name: Tells it from the others.
        settings: With what they name in files.
        digest: Of the module of a policy of one's own, which is edited while its name stays.
    """

    name: str
    policy: str
    settings: dict[str, Any]
    digest: str = ""


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
        experiment: Name of its directory in the sweep's, with a digest of all that it is.
        text: Of ``experiment.toml``.
        files: What lies beside it and is needed, as a tar file.
        scale: As a fraction.
        arm: Which arm.
        repeat: Which repeat.
    """

    experiment: str
    text: str
    files: bytes
    scale: str
    arm: str
    repeat: int


Task = ModelTask | GuestsTask


def key_of(task: Task) -> str:
    """Return a name for a task that is the same for the same task, in whatever file it stands."""
    if isinstance(task, GuestsTask):
        task = structs.replace(task, text="", files=b"")  # its experiment's name tells them
    found = msgspec.json.encode(task, order="deterministic")
    return f"{task.__struct_config__.tag}-{hashlib.sha256(found).hexdigest()[:20]}"


class RealExperiment(Struct, frozen=True, kw_only=True):
    """An experiment of a sweep, at one scale.

    Attributes:
        name: Of its directory. The digest in it is of all but the repeats: with more, what is done is of use.
        text: As of its tasks.
        files: As of its tasks.
        specification: Scaled, with the repeats asked for.
    """

    name: str
    text: str
    files: bytes
    specification: Specification

    def tasks(self) -> tuple[GuestsTask, ...]:
        """Return its runs in the planned order."""
        found = self.specification
        return tuple(
            GuestsTask(
                experiment=self.name, text=self.text, files=self.files, scale=found.scale,
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
        found = {_own_module(each.policy, self.file) for each in self.policies}
        return tuple(sorted(path for path in found if path is not None))


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
    mistakes = Mistakes(str(file), DOCS)
    found: SweepFile = mistakes.convert(data, SweepFile, "")
    mistakes.raise_if_any()
    mistakes.add_all(told(found))
    keys, loads = found.sweep, [each.made() for each in found.load]
    policies = [
        choice
        for index, each in enumerate(found.policy)
        for choice in _choices(each, f"policy[{index}]", mistakes, str(file))
    ]
    real = [
        experiment
        for index, each in enumerate(found.experiment)
        for experiment in _experiments(each, f"experiment[{index}]", mistakes, file)
    ]
    if not loads and not real:
        mistakes.add("load", "nothing is to be run", hint="give a [[load]] for the model, or an [[experiment]]")
    if loads and not policies:
        mistakes.add("policy", "no policy is given", hint="add a [[policy]] table for each")
    for key, names in (("policy", policies), ("load", loads), ("experiment", real)):
        found_names = [each.name for each in names]
        for name in sorted({name for name in found_names if found_names.count(name) > 1}):
            mistakes.add(key, f"{name!r} is there twice", hint="leave one out")
    for each, size in itertools.product(loads, keys.sizes):
        if each.budget_bytes * size <= each.floors_bytes:
            floors = format_size(each.floors_bytes)
            hint = f"more than {each.floors_bytes / each.budget_bytes:.2g}: its guests' floors are {floors} together"
            mistakes.add("sweep.sizes", f"{size:g} times the budget of {each.name!r} leaves nothing to move", hint=hint)
    mistakes.raise_if_any()
    models = tuple(
        ModelTask(
            load=each, policy=policy, size=size, lru=LRU_FLAVOURS[lru], seed=seed,
            interval_s=float(keys.interval), warm_up_s=float(keys.warm_up), duration_s=float(keys.duration),
        )
        for each, lru, size, seed, policy in itertools.product(loads, keys.lru, keys.sizes, keys.seeds, policies)
    )  # fmt: skip
    return Sweep(name=keys.name, file=str(file), policies=tuple(policies), models=models, experiments=tuple(real))


def _choices(keys: PolicyKeys, key: str, mistakes: Mistakes, file: str) -> Iterator[PolicyChoice]:
    """Yield a policy with each combination of its settings, once it is certain that there is such a policy."""
    for values in itertools.product(*keys.grid.values()):
        chosen_here = dict(zip(keys.grid, values, strict=True))
        words = [f"{name}={value}" for name, value in (keys.settings | chosen_here).items()]
        found = PolicyChoice(
            name=" ".join([keys.policy, *words]), policy=keys.policy, settings=keys.settings | chosen_here
        )
        mistaken = list(wrong(found.policy, found.settings, file=file))
        for name, message, hint in mistaken:
            mistakes.add(f"{key}.{name}", message, hint=hint)
        if mistaken:
            return
        own = _own_module(found.policy, file)
        yield structs.replace(
            found,
            settings=dict(resolved(found.policy, found.settings, file=file)),
            digest=_digest(own.read_bytes()) if own else "",
        )


def _own_module(policy: str, file: str) -> Path | None:
    """Return the file of a policy of one's own that lies beside the sweep's."""
    module, own, _ = policy.partition(":")
    path = Path(file).with_name(f"{module.partition('.')[0]}.py")
    return path if own and path.is_file() else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _experiments(keys: ExperimentKeys, key: str, mistakes: Mistakes, file: Path) -> Iterator[RealExperiment]:
    path = file.parent / keys.file
    try:
        text = read_text(path, example="it is looked for beside the sweep's file")
        given = load_experiment(path)
        files = files_of(given)
        said = tomllib.loads(text)
        said["experiment"].pop("repeats", None)
        digest = _digest(repr(said).encode() + files)
        for factor in keys.scales:
            found = chosen(scale(given, Fraction(factor)), repeats=keys.repeats or given.repeats)
            name = f"{found.name}-{found.scale.replace('/', '_')}-{digest}"
            yield RealExperiment(name=name, text=text, files=files, specification=found)
    except ConfigError as error:
        mistakes.add(f"{key}.file", str(error))
    except (ValueError, ZeroDivisionError):
        mistakes.add(f"{key}.scales", "not all are fractions", hint='for example ["1/4", "1/2"]')
