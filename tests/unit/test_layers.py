"""Imports point downwards only: a newcomer can read the package from the bottom up."""

import ast
from pathlib import Path

import qmpalloc

LAYERS = [
    {"errors", "units", "text"},
    {"sample", "model", "config"},
    {"events"},
    {"policy", "curves", "ledger", "limits", "danger", "obedience", "hostguard", "journal"},
    {"hostfacts", "hostmemory", "roster"},
    {"qmp"},
    {"qemu", "guest"},
    {"inspection", "sampling", "lock"},
    {"session"},
    {"books", "fleet", "homecoming"},
    {"decider"},
    {"controller", "handle"},
    {"record", "summary"},
    {"testing", "experiment", "tui", "doctor"},
    {"lab"},
    {"cli"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
PURE = [
    "experiment",
    "policy",
    "curves",
    "ledger.py",
    "limits.py",
    "danger.py",
    "obedience.py",
    "hostguard.py",
    "roster.py",
    "sample.py",
    "model.py",
    "guest.py",
    "units.py",
]
ROOT = Path(qmpalloc.__file__).parent


def part_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "qmpalloc")


def sources():
    return [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in {"__init__.py", "_data"}]


def test_every_module_has_a_layer():
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in sources()} - {"__main__"} <= RANK.keys()


def test_imports_point_downwards():
    wrong = []
    for path in sources():
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for module in imports(path):
            part = part_of(module) if module.split(".")[0] == "qmpalloc" else None
            # Modules of one layer may know each other (model and sample do), but only in one direction.
            if part in RANK and own in RANK and RANK[part] > RANK[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_what_is_pure_neither_awaits_nor_knows_trio():
    for name in PURE:
        place = ROOT / name
        for path in [place] if place.is_file() else place.rglob("*.py"):
            tree = ast.parse(path.read_text())
            assert not any(isinstance(node, (ast.Await, ast.AsyncFunctionDef)) for node in ast.walk(tree)), path
            assert "trio" not in set(imports(path)), path


def test_the_guest_side_knows_nothing_of_the_host_side():
    for path in (ROOT.parent / "guest_agent").rglob("*.py"):
        assert not any(module.split(".")[0] == "qmpalloc" for module in imports(path)), path
