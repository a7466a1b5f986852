"""Find a policy by name, or a user's own by ``module:attribute``."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qmpalloc.config import convert
from qmpalloc.config.keys import Found
from qmpalloc.errors import ConfigError
from qmpalloc.model import Decision, Policy, Snapshot
from qmpalloc.rules.promises import KeepsPromises

_MODULES = {
    "static": "qmpalloc.policy.static:StaticPolicy",
    "paper": "qmpalloc.policy.paper:PaperPolicy",
    "hill": "qmpalloc.policy.hill:HillPolicy",
    "curve": "qmpalloc.policy.curve.policy:CurvePolicy",
    "oracle": "qmpalloc.policy.oracle:OraclePolicy",
    "proxmox": "qmpalloc.policy.rivals.proxmox:ProxmoxPolicy",
    "mom": "qmpalloc.policy.rivals.mom:MomPolicy",
    "qubes": "qmpalloc.policy.rivals.qubes:QubesPolicy",
    "qemus": "qmpalloc.policy.rivals.qemus:QemusPolicy",
    "idle-tax": "qmpalloc.policy.rivals.idle_tax:IdleTaxPolicy",
}
NAMES = tuple(_MODULES)


class _FunctionPolicy:
    """A bare function ``decide(snapshot) -> Decision`` as a policy."""

    def __init__(self, function: Callable[[Snapshot], Decision]) -> None:
        self._function = function

    def decide(self, snapshot: Snapshot) -> Decision:
        return self._function(snapshot)


def load(name: str, settings: Mapping[str, Any], *, file: str = "") -> Policy:
    """Return the policy called `name`, with its settings validated.

    Args:
        name: One of `NAMES`, or ``module:attribute`` for a user's own: a policy object, a class, or a function
            ``decide(snapshot)``. The module is also looked for beside the configuration file.
            With the attribute ``promises = True`` the promises in its decisions are kept
            (`qmpalloc.rules.promises`), and it sees no floors below what guests have in use.
        settings: The ``[policy]`` table without its name. A policy class takes them as a value of its nested
            ``Settings`` struct if it has one, else none are allowed. A class method ``resolve_settings(settings,
            file)`` may replace them before, by what it reads from files beside the configuration.
        file: The configuration file, for messages and for the module search.

    Raises:
        ConfigError: No such policy, or wrong settings.
    """
    return made(name, resolved(name, settings, file=file), file=file)


def made(name: str, settings: Mapping[str, Any], *, file: str = "") -> Policy:
    """Return the policy with settings that are `resolved`: what they named in files may be out of reach. As `load`."""
    target, found = _found(name, file)
    schema = getattr(found, "Settings", None)
    arguments = []
    if schema is not None and isinstance(found, type):
        arguments = [convert(settings, schema, file=file, key="policy")]
    elif settings:
        key = f"policy.{next(iter(settings))}"
        raise ConfigError("unknown key", file=file, key=key, hint=f"policy {name} has no settings")
    if isinstance(found, type):
        try:
            found = found(*arguments)
        except ConfigError as error:
            raise ConfigError(error.reason, file=file, key=f"policy.{error.key}", hint=error.hint) from error
        except (Exception, SystemExit) as error:  # it is the user's code
            raise ConfigError(f"{target} cannot be made: {_told(error)}", file=file, key="policy.name") from error
    promises = bool(getattr(found, "promises", False))
    if not isinstance(found, Policy) and callable(found):
        found = _FunctionPolicy(found)
    if isinstance(found, Policy):
        return KeepsPromises(found) if promises else found
    raise ConfigError(f"{target} is not a policy", file=file, key="policy.name", hint="it needs decide(snapshot)")


def wrong(name: str, settings: Mapping[str, Any], *, file: str) -> Found:
    """Yield what `load` finds wrong, at the keys of a table with a `policy` and its `settings`."""
    try:
        load(name, settings, file=file)
    except ConfigError as error:
        for each in error.each or (error,):
            key = each.key.removeprefix("policy.")
            yield "policy" if key == "name" else f"settings.{key}", each.reason, each.hint


def resolved(name: str, settings: Mapping[str, Any], *, file: str) -> Mapping[str, Any]:
    """Return the settings with what the policy reads from files beside the configuration.

    Raises:
        ConfigError: No such policy, or no such files.
    """
    _, policy = _found(name, file)
    resolve = getattr(policy, "resolve_settings", None)
    if resolve is None or not isinstance(policy, type) or not hasattr(policy, "Settings"):
        return settings
    try:
        found: Mapping[str, Any] = resolve(settings, file)
    except ConfigError as error:
        raise ConfigError(error.reason, file=file, key=f"policy.{error.key}", hint=error.hint) from error
    return found


def forget(place: Path) -> None:
    """Forget what was imported from a directory or below it: another one may have modules of the same names."""
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").is_relative_to(place):
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if not Path(path).is_relative_to(place)]


def _found(name: str, file: str) -> tuple[str, Any]:
    """Return ``module:attribute`` of a policy, and what it is."""
    target = _MODULES.get(name, name)
    if ":" not in target:
        raise ConfigError(
            f"unknown policy {name!r}",
            file=file,
            key="policy.name",
            hint=f"known are {', '.join(NAMES)}, or module:attribute for your own",
        )
    return target, _import(target, beside=file if name not in _MODULES else "")


def _import(target: str, *, beside: str) -> Any:
    """Import ``module:attribute``; the module is also looked for beside a file, if one is given."""
    module_name, _, attribute = target.partition(":")
    place = str(Path(beside).parent)
    if beside and place not in sys.path:
        sys.path.append(place)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # it is the user's code
        raise ConfigError(f"cannot load {target}: {_told(error)}", file=beside, key="policy.name") from error


def _told(error: BaseException) -> str:
    """Return an error of a user's module with the place it comes from."""
    if isinstance(error, (ImportError, AttributeError, SyntaxError)):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
