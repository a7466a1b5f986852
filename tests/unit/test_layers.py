"""Imports point downwards only: a newcomer can read the package from the bottom up."""

import ast
import graphlib
from pathlib import Path

import qmpalloc

# Modules of one layer may know each other (model and sample do), but only in one direction.
LAYERS = [
    {"errors", "units", "text", "allowance", "files"},
    {"sample", "idle", "returns", "model", "config"},
    {"events"},
    {"curves", "rules"},
    {"policy"},
    {"host"},
    {"qmp"},
    {"channel"},
    {"qemu"},
    {"installation"},
    {"control"},
    {"record", "summary"},
    {"status"},
    {"experiment", "tui", "doctor", "proposal", "metrics"},
    {"sim"},
    {"sweep", "testing"},
    {"cli"},
]
INSIDE = {
    "control": [
        {"journal", "lock", "roster"},
        {"memory", "size", "danger", "samples"},
        {"guest"},
        {"snapshot", "inspection", "run_state", "sampling"},
        {"resizer"},
        {"session"},
        {"commitments", "fleet", "restore"},
        {"decider", "reporter", "requests", "room", "standstill", "start"},
        {"controller", "handle"},
    ],
    "experiment": [
        {"spec"},
        {"store"},
        {"analysis", "run"},
        {"report"},
    ],
}
# Not all of control/ may reach for what stands below it.
MAY_KNOW = {
    "host": {"controller", "fleet", "inspection"},
    "qmp": {"inspection", "run_state", "sampling", "resizer", "session", "handle"},
    "qemu": {"lock"},
}
PURE = [
    *(
        "errors.py",
        "units.py",
        "text.py",
        "allowance.py",
        "files.py",
        "sample.py",
        "idle.py",
        "returns.py",
        "model.py",
        "config",
        "events.py",
        "record.py",
        "summary.py",
    ),
    *("curves", "rules", "policy", "sim", "sweep/spec.py", "sweep/model.py"),
    *("experiment/spec", "experiment/store", "experiment/analysis", "experiment/report"),
    *("experiment/run/generator", "experiment/run/traces.py"),
    *("status/feed.py", "status/protocol.py", "metrics/families.py"),
    *("proposal/seen.py", "proposal/sizes.py", "proposal/document.py"),
    *(f"control/{name}.py" for name in ("memory", "size", "danger", "samples", "guest", "snapshot", "roster")),
]
ROOT = Path(qmpalloc.__file__).parent


def module_of(path):
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {
    module_of(path): path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0] not in {"__init__.py", "__main__.py", "_data"}
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            beside = f"{module_of(path.parent)}." if node.level else ""  # what runs in guests has no name of its own
            yield from (f"{beside}{node.module}.{alias.name}" for alias in node.names)


def own_imports(path):
    """Yield the modules of qmpalloc that a file imports, by the names of `SOURCES`."""
    for name in imports(path):
        while name and name not in SOURCES:
            name = name.rpartition(".")[0]
        if name:
            yield name


def part_of(module):
    """Return what a module is called in `LAYERS`, and in `INSIDE` or None."""
    _, part, *inner = module.split(".")
    return part, inner[0] if inner else None


def pure_paths():
    for name in PURE:
        place = ROOT / name
        yield from [place] if place.is_file() else place.rglob("*.py")


def test_every_module_has_one_layer():
    parts = {part_of(module)[0] for module in SOURCES}
    assert sorted(name for layer in LAYERS for name in layer) == sorted(parts)
    for package, layers in INSIDE.items():
        modules = {part_of(module)[1] for module in SOURCES if part_of(module)[0] == package} - {None}
        assert sorted(name for layer in layers for name in layer) == sorted(modules)


def test_imports_point_downwards():
    rank = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for module, path in SOURCES.items():
        own = part_of(module)[0]
        wrong += [f"{module} imports {other}" for other in own_imports(path) if rank[part_of(other)[0]] > rank[own]]
    assert wrong == []


def test_imports_inside_a_package_point_downwards():
    wrong = []
    for package, layers in INSIDE.items():
        rank = {name: rank for rank, layer in enumerate(layers) for name in layer} | {None: len(layers)}
        for module, path in SOURCES.items():
            part, own = part_of(module)
            inner = [(other, part_of(other)[1]) for other in own_imports(path) if part_of(other)[0] == part == package]
            wrong += [f"{module} imports {other}" for other, name in inner if rank[name] > rank[own]]
    assert wrong == []


def test_no_two_modules_need_each_other():
    tree = {module: set(own_imports(path)) - {module} for module, path in SOURCES.items()}
    list(graphlib.TopologicalSorter(tree).static_order())  # raises CycleError


def test_only_some_of_control_speak_to_qemu_and_ask_the_host():
    wrong = []
    for module, path in SOURCES.items():
        part, own = part_of(module)
        if part == "control":
            others = {part_of(other)[0] for other in own_imports(path)}
            wrong += [f"{module} imports {other}" for other in others & MAY_KNOW.keys() if own not in MAY_KNOW[other]]
    assert wrong == []


def test_what_is_pure_neither_awaits_nor_knows_trio():
    for path in pure_paths():
        tree = ast.parse(path.read_text())
        assert not any(isinstance(node, (ast.Await, ast.AsyncFunctionDef)) for node in ast.walk(tree)), path
        assert "trio" not in {name.split(".")[0] for name in imports(path)}, path


def test_what_is_pure_knows_only_what_is_pure():
    pure = {module_of(path) for path in pure_paths()}
    for path in pure_paths():
        assert set(own_imports(path)) <= pure, path


def test_the_guest_side_knows_nothing_of_the_host_side():
    for path in (ROOT.parent / "guest_agent").rglob("*.py"):
        assert not any(module.split(".")[0] == "qmpalloc" for module in imports(path)), path
    for path in (ROOT / "experiment/run/generator").rglob("*.py"):
        assert all(module.startswith("qmpalloc.experiment.run.generator.") for module in own_imports(path)), path
