"""The configuration file: TOML in, frozen values out, every mistake named with file, key and hint.

Format: ``docs/configuration.md``. Relative paths are relative to the configuration file.
"""

from __future__ import annotations

import difflib
import os
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from qmpalloc.errors import ConfigError
from qmpalloc.units import format_size, parse_duration, parse_size

DEFAULT_COUNTERS_FILE = "/run/qmpalloc/counters.json"
MAX_SOCKET_PATH_BYTES = 107  # sun_path of a Unix socket is 108 bytes with its closing zero


class Size(int):
    """Bytes; written with a unit in TOML (``"1GiB"``)."""

    __slots__ = ()


class Duration(float):
    """Seconds; written with a unit in TOML (``"2s"``)."""

    __slots__ = ()


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TOML table: unknown keys are refused."""


class HostConfig(_Table, frozen=True, kw_only=True):
    """``[host]``: what this host gives.

    Attributes:
        budget: Bytes all guests share.
        run_dir: Where ``qmpalloc vm up`` keeps sockets and logs; a directory of the user's by default.
    """

    budget: Size
    run_dir: str = ""


class ControlConfig(_Table, frozen=True, kw_only=True):
    """``[control]``: the loop.

    Attributes:
        interval: Time between decisions.
        sample_interval: Time between readings of a guest's counters file.
        late_after: Age of the last sample from which a guest is held.
        lost_after: Age from which it is returned to its baseline.
        command_timeout: Deadline of one QMP or agent command.
        balloon_poll: Time between ``query-balloon`` while a balloon is moving.
        reserve: Kept free in a guest above what it cannot give up (part of the floor).
        on_exit: ``baseline`` returns every guest to its baseline at the end, ``keep`` leaves the sizes.
        exit_timeout: How long the return to baseline may take.
    """

    interval: Duration = Duration(5.0)
    sample_interval: Duration = Duration(1.0)
    late_after: Duration = Duration(5.0)
    lost_after: Duration = Duration(20.0)
    command_timeout: Duration = Duration(3.0)
    balloon_poll: Duration = Duration(0.25)
    reserve: Size = Size(64 * 1024 * 1024)
    on_exit: Literal["baseline", "keep"] = "baseline"
    exit_timeout: Duration = Duration(15.0)


class DataDiskConfig(_Table, frozen=True, kw_only=True):
    """``[guest.vm.data]``: an ext4 disk for loads, made on the host and mounted at ``/data``.

    Attributes:
        size: Of the disk.
        files: Name to size; filled with incompressible data so that every page is really on disk.
        iops: Throttle of the disk in I/O operations per second; 0 is none.
    """

    size: Size
    files: dict[str, Size] = {}
    iops: int = 0


class VmConfig(_Table, frozen=True, kw_only=True):
    """``[guest.vm]``: how ``qmpalloc vm up`` starts this guest. Not needed for a QEMU that already runs.

    Attributes:
        memory: RAM of the guest (``-m``); the cap cannot exceed it.
        cpus: Virtual CPUs.
        suite: Debian suite of the reference image: ``trixie`` or ``bookworm``.
        profile: Image profile: ``base``, or ``lab`` with a second agent that may execute programs.
        accelerator: ``auto`` probes whether a guest really boots under KVM.
        data: The data disk, if any.
        load: Program and arguments to start in the guest once it is observed (profile ``lab``).
    """

    memory: Size
    cpus: int = 1
    suite: Literal["trixie", "bookworm"] = "trixie"
    profile: Literal["base", "lab"] = "lab"
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    data: DataDiskConfig | None = None
    load: tuple[str, ...] = ()


class GuestConfig(_Table, frozen=True, kw_only=True):
    """``[[guest]]``: one QEMU.

    Attributes:
        name: Letters, digits, ``-``, ``_`` and ``.``.
        monitor: Path of a QMP socket that qmpalloc may hold alone.
        agent: Path of the guest-agent socket.
        floor: The least this guest may be set to.
        cap: The most.
        baseline: Its size while qmpalloc does not control it.
        weight: Relative importance.
        counters_file: Path of the counters file inside the guest.
        vm: How to start it, for ``qmpalloc vm up``.
    """

    name: str
    monitor: str = ""
    agent: str = ""
    floor: Size
    cap: Size
    baseline: Size
    weight: float = 1.0
    counters_file: str = DEFAULT_COUNTERS_FILE
    vm: VmConfig | None = None


class Config(Struct, frozen=True, kw_only=True):
    """A whole configuration, validated.

    Attributes:
        file: Where it came from, absolute.
        host: ``[host]``.
        control: ``[control]``.
        policy: Name of the policy, or ``module:attribute``.
        policy_settings: The rest of ``[policy]``, as written; the policy validates it.
        guests: At least one.
    """

    file: str
    host: HostConfig
    control: ControlConfig
    policy: str
    policy_settings: dict[str, Any]
    guests: tuple[GuestConfig, ...]

    def guest(self, name: str) -> GuestConfig:
        """Return the guest called `name`.

        Raises:
            ConfigError: There is none.
        """
        for guest in self.guests:
            if guest.name == name:
                return guest
        known = ", ".join(guest.name for guest in self.guests)
        raise ConfigError(f"no guest is called {name!r}", file=self.file, key="guest", hint=f"known are {known}")


def default_run_dir() -> Path:
    """Return the user's own directory for sockets: ``$XDG_RUNTIME_DIR/qmpalloc``, else one in ``/tmp``."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "qmpalloc" if base else Path(f"/tmp/qmpalloc-{os.getuid()}")


def load(path: str | os.PathLike[str]) -> Config:
    """Read and validate a configuration file.

    Raises:
        ConfigError: With file, dotted key and hint. Several mistakes are reported together, one per line.
    """
    file = Path(path).absolute()
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError("no such file", file=str(path), hint="see examples/ for a configuration") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path)) from error
    return parse(text, file=file)


def parse(text: str, *, file: Path) -> Config:
    """Validate the text of a configuration file; `file` gives the base of relative paths.

    Raises:
        ConfigError: As `load`.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}", file=str(file)) from error
    mistakes = _Mistakes(str(file))
    for key in data.keys() - {"host", "control", "policy", "guest"}:
        mistakes.add(key, "unknown table", hint="known are [host], [control], [policy] and [[guest]]")
    host = mistakes.convert(data.get("host"), HostConfig, "host", missing='add [host] with budget = "3GiB"')
    control = mistakes.convert(data.get("control", {}), ControlConfig, "control")
    policy, settings = _policy(data.get("policy", {}), mistakes)
    guests = _guests(data.get("guest"), mistakes)
    mistakes.raise_if_any()
    assert host is not None
    assert control is not None
    run_dir = file.parent / host.run_dir if host.run_dir else default_run_dir()
    host = msgspec.structs.replace(host, run_dir=str(run_dir))
    config = Config(
        file=str(file),
        host=host,
        control=control,
        policy=policy,
        policy_settings=settings,
        guests=tuple(_with_paths(guest, file.parent, run_dir) for guest in guests),
    )
    _check(config, mistakes)
    mistakes.raise_if_any()
    return config


def convert(table: Mapping[str, Any], into: type[Any], *, file: str, key: str) -> Any:
    """Return `table` as the msgspec struct `into`, with sizes and durations parsed.

    Policies validate their settings with this, so that their errors read like all others.

    Raises:
        ConfigError: A key is unknown, missing, or has a wrong value.
    """
    mistakes = _Mistakes(file)
    value = mistakes.convert(table, into, key)
    mistakes.raise_if_any()
    return value


class _Mistakes:
    """Collects mistakes, so that a user sees all of them at once."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._errors: list[ConfigError] = []

    def add(self, key: str, message: str, *, hint: str = "") -> None:
        self._errors.append(ConfigError(message, file=self._file, key=key, hint=hint))

    def raise_if_any(self) -> None:
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            raise ConfigError("\n".join(str(error) for error in self._errors))

    def convert(self, table: Any, into: type[Any], key: str, *, missing: str = "") -> Any:
        if table is None:
            self.add(key, "missing", hint=missing)
            return None
        if not isinstance(table, Mapping):
            self.add(key, f"must be a table, not {type(table).__name__}", hint=missing)
            return None
        before = len(self._errors)
        for name in table:
            known = into.__struct_fields__
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                self.add(f"{key}.{name}", "unknown key", hint=hint)
        table = {name: value for name, value in table.items() if name in into.__struct_fields__}
        # A key at a time, so that two wrong keys give two messages; the nested tables go through here as well.
        values: dict[str, Any] = {}
        hints = typing.get_type_hints(into, include_extras=True)
        for name, raw in table.items():
            nested = _nested_struct(hints[name])
            if nested is not None:
                values[name] = self.convert(raw, nested, f"{key}.{name}")
                continue
            try:
                values[name] = _plain(msgspec.convert(raw, hints[name], dec_hook=_quantity))
            except msgspec.ValidationError as error:
                self.add(f"{key}.{name}", str(error).replace(" - at `$", " (at `"))
        required = [field.name for field in msgspec.structs.fields(into) if field.required]
        for name in required:
            if name not in table:
                self.add(f"{key}.{name}", "missing", hint=missing)
        return into(**values) if len(self._errors) == before else None


def _nested_struct(hint: Any) -> type[Any] | None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if isinstance(option, type) and issubclass(option, Struct):
            return option
    return None


def _quantity(expected: type[Any], value: Any) -> Any:
    """Parse our unit types for msgspec; its message gets the key path around ours."""
    if expected is Size or expected is Duration:
        if not isinstance(value, str):
            example = '"512MiB"' if expected is Size else '"2s"'
            raise ValueError(f"{value!r} has no unit; write for example {example}")
        return Size(parse_size(value)) if expected is Size else Duration(parse_duration(value))
    raise NotImplementedError(expected)


def _plain(value: Any) -> Any:
    """Return quantities as the plain numbers they are; their types only matter while they are read."""
    if isinstance(value, Size):
        return int(value)
    if isinstance(value, Duration):
        return float(value)
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _policy(table: Any, mistakes: _Mistakes) -> tuple[str, dict[str, Any]]:
    if not isinstance(table, Mapping):
        mistakes.add("policy", "must be a table", hint='write [policy] with name = "paper"')
        return "", {}
    name = table.get("name", "paper")
    if not isinstance(name, str):
        mistakes.add("policy.name", "must be text", hint='for example "paper" or "my_module:my_policy"')
        return "", {}
    return name, {key: value for key, value in table.items() if key != "name"}


def _guests(tables: Any, mistakes: _Mistakes) -> list[GuestConfig]:
    if not isinstance(tables, list) or not tables:
        mistakes.add("guest", "no guest is configured", hint="add a [[guest]] table for each QEMU")
        return []
    converted = [mistakes.convert(table, GuestConfig, f"guest[{index}]") for index, table in enumerate(tables)]
    return [guest for guest in converted if guest is not None]


def _with_paths(guest: GuestConfig, base: Path, run_dir: Path) -> GuestConfig:
    """Make the socket paths absolute; a guest that we start ourselves has them in the run directory by default."""
    monitor, agent = guest.monitor, guest.agent
    if guest.vm is not None:
        monitor = monitor or str(run_dir / guest.name / "monitor.sock")
        agent = agent or str(run_dir / guest.name / "agent.sock")
    return msgspec.structs.replace(
        guest,
        monitor=str(base / monitor) if monitor else "",
        agent=str(base / agent) if agent else "",
    )


def _check(config: Config, mistakes: _Mistakes) -> None:
    """Check what concerns several keys or several guests."""
    control = config.control
    if not 0 < control.late_after < control.lost_after:
        mistakes.add("control.late_after", "must be above 0 and below control.lost_after")
    for name in ("interval", "sample_interval", "command_timeout", "balloon_poll", "exit_timeout"):
        if getattr(control, name) <= 0:
            mistakes.add(f"control.{name}", "must be above 0")
    for index, guest in enumerate(config.guests):
        for key, message, hint in _guest_mistakes(guest):
            mistakes.add(f"guest[{index}].{key}", message, hint=hint)
    _check_unique(config, mistakes)
    _check_budget(config, mistakes)


def _guest_mistakes(guest: GuestConfig) -> Iterator[tuple[str, str, str]]:
    if not guest.name or not all(char.isascii() and (char.isalnum() or char in "-_.") for char in guest.name):
        yield "name", f"{guest.name!r} is not a name", "use letters, digits, '-', '_' and '.'"
    elif guest.name in {".", ".."} or len(guest.name) > 32:
        yield "name", f"{guest.name!r} is not a name", "use at most 32 characters"
    for key in ("monitor", "agent"):
        path = getattr(guest, key)
        if not path:
            yield key, "missing", "the path of a Unix socket; see 'qmpalloc vm up --dry-run' for QEMU's side"
        elif len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            yield key, f"{path} is longer than a Unix socket path may be ({MAX_SOCKET_PATH_BYTES} bytes)", ""
    if guest.floor <= 0:
        yield "floor", "must be above 0", "a guest without memory dies"
    if guest.floor > guest.cap:
        yield "floor", f"{format_size(guest.floor)} is above the cap of {format_size(guest.cap)}", ""
    elif not guest.floor <= guest.baseline <= guest.cap:
        yield "baseline", f"{format_size(guest.baseline)} is not between floor and cap", ""
    if guest.vm is not None and guest.cap > guest.vm.memory:
        yield "cap", f"{format_size(guest.cap)} is above the guest's memory of {format_size(guest.vm.memory)}", ""
    if guest.weight <= 0:
        yield "weight", "must be above 0", ""
    if not guest.counters_file.startswith("/"):
        yield "counters_file", "must be an absolute path inside the guest", ""
    if guest.vm is not None and guest.vm.data is not None and guest.vm.data.iops < 0:
        yield "vm.data.iops", "must not be negative", "0 is no limit"


def _check_unique(config: Config, mistakes: _Mistakes) -> None:
    seen: dict[str, str] = {}
    for index, guest in enumerate(config.guests):
        for key in ("name", "monitor", "agent"):
            value = getattr(guest, key)
            identity = value if key == "name" else os.path.realpath(value)
            where = f"guest[{index}].{key}"
            if value and identity in seen:
                hint = "" if key == "name" else "QEMU serves one client per socket; start it with a second -qmp"
                mistakes.add(where, f"{value} is already {seen[identity]}", hint=hint)
            seen.setdefault(identity, where)


def _check_budget(config: Config, mistakes: _Mistakes) -> None:
    budget = config.host.budget
    for name in ("floor", "baseline"):
        total = sum(getattr(guest, name) for guest in config.guests)
        if total > budget:
            mistakes.add(
                "host.budget",
                f"the guests' {name}s add up to {format_size(total)}, the budget is {format_size(budget)}",
                hint=f"lower the {name}s or raise the budget",
            )
