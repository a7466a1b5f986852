"""Checks of the host: programs, accelerator, memory, pressure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from qmpalloc.config import Config
from qmpalloc.doctor.checks import Check, failed, passed, warned
from qmpalloc.errors import ConfigError
from qmpalloc.host.cgroups import find_hierarchy, limits
from qmpalloc.host.kernel_files import KernelFiles
from qmpalloc.policy import load
from qmpalloc.qemu import accelerator
from qmpalloc.qemu.architecture import named, native
from qmpalloc.qemu.host import find_program, qemu_version
from qmpalloc.units import format_size


def check_host(config: Config | None) -> Iterator[Check]:
    """Yield the checks of this host; those of the budget only with a configuration."""
    yield from _qemus(config)
    yield _kvm()
    yield _pressure(Path("/proc/pressure/memory"))
    memory = KernelFiles().sizes(Path("/proc/meminfo"))
    yield _swap(memory)
    if config is not None:
        yield _memory(config, memory)
        yield check_cgroup(config, Path("/proc"))
        yield _run_dir(Path(config.host.run_dir))
        yield _policy(config)


def _qemus(config: Config | None) -> Iterator[Check]:
    """Yield a check of the emulator of each architecture that guests are to be started of, else of this host's."""
    started = [guest.vm for guest in config.guests if guest.vm is not None] if config is not None else []
    for program, package in {named(vm.arch).qemu: None for vm in started} or [native().qemu]:
        if find_program(program) is None:
            todo = f"only needed to start guests from here: apt-get install {package} qemu-utils"
            yield warned("host", "QEMU", f"{program} is not installed", todo)
        else:
            yield passed("host", "QEMU", qemu_version(program))


def _kvm() -> Check:
    node = accelerator.KVM_DEVICE
    if not node.exists():
        return warned("host", "KVM", f"no {node}: guests are emulated", "load kvm_intel or kvm_amd, or accept TCG")
    if not os.access(node, os.R_OK | os.W_OK):
        return warned("host", "KVM", f"{node} may not be opened by this user", "add the user to the group kvm")
    probe = accelerator.known()
    if probe is None:
        detail = f"{node} can be opened; whether a guest boots is not known"
        return warned("host", "KVM", detail, "'qmpalloc vm up' tries it with its image, and remembers the outcome")
    if not probe.booted:
        todo = "if this host is a guest itself, enable nested virtualisation for it; or accept TCG"
        return warned("host", "KVM", f"{node} can be opened, but {probe.reason}", todo)
    return passed("host", "KVM", probe.reason)


def _pressure(path: Path) -> Check:
    try:
        some = path.read_text().splitlines()[0]
    except OSError:
        return warned("host", "PSI", "the kernel reports no memory pressure", "boot the host with psi=1")
    average = float(some.split("avg10=")[1].split()[0])
    if average > 10:
        return warned("host", "PSI", f"tasks wait for memory {average:.0f} % of the time", "lower the budget")
    return passed("host", "PSI", f"memory pressure {average:.1f} %")


def _swap(facts: dict[str, int]) -> Check:
    used = facts.get("SwapTotal", 0) - facts.get("SwapFree", 0)
    if used > 64 * 1024 * 1024:
        todo = "lower the budget: guest memory on the host's swap is slower than no cache"
        return warned("host", "swap", f"{format_size(used)} in use", todo)
    return passed("host", "swap", f"{format_size(used)} in use")


def _memory(config: Config, facts: dict[str, int]) -> Check:
    total, budget = facts.get("MemTotal"), int(config.host.budget)
    if total is None:
        todo = "without it nobody notices a host that runs short of memory"
        return warned("host", "memory", "/proc/meminfo does not tell the memory of this host", todo)
    detail = f"budget {format_size(budget)} of {format_size(total)}"
    if budget > total:
        return failed("host", "memory", detail, "lower [host] budget below the memory of this host")
    if budget > 0.9 * total:
        return warned("host", "memory", detail, "leave the host a tenth of its memory")
    return passed("host", "memory", detail)


def check_cgroup(config: Config, proc: Path) -> Check:
    """Return what limits the memory of this process, or that nobody could look."""
    files = KernelFiles()
    hierarchy = find_hierarchy(files, proc)
    found = list(limits(files, hierarchy)) if hierarchy is not None else []
    tightest = min(found, key=lambda limit: limit.limit_bytes, default=None)
    place = "there is none" if hierarchy is None else f"v{hierarchy.version}, {hierarchy.innermost}"
    detail = f"no control group limits the memory of this process ({place})"
    if tightest is not None:
        detail = f"this control group may use {format_size(tightest.limit_bytes)} ({tightest.file})"
    if files.unread:
        known = f"{detail}; others" if tightest is not None else "limits on memory"
        todo = "if the guests run in a group with a limit, keep the budget below it: nobody watches it"
        return warned("host", "cgroup", f"{known} cannot be looked up: {'; '.join(files.unread)}", todo)
    if tightest is not None and tightest.limit_bytes < config.host.budget:
        todo = f"raise {tightest.file.name} of the group, or lower [host] budget, if the guests run in it"
        return warned("host", "cgroup", detail, todo)
    return passed("host", "cgroup", detail)


def _run_dir(path: Path) -> Check:
    if not path.exists():
        place = next(parent for parent in path.parents if os.path.lexists(parent))
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            detail = f"{path} cannot be created in {place}"
            return failed("host", "run directory", detail, "choose another with XDG_RUNTIME_DIR or [host] run_dir")
        return passed("host", "run directory", f"{path} will be created")
    if not path.is_dir():
        return failed("host", "run directory", f"{path} is not a directory", "choose another with [host] run_dir")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return warned("host", "run directory", f"{path} is open to others ({mode:o})", f"chmod 700 {path}")
    return passed("host", "run directory", f"{path} is for its owner only")


def _policy(config: Config) -> Check:
    try:
        load(config.policy, config.policy_settings, file=config.file)
    except ConfigError as error:
        return failed("host", "policy", error.message, error.hint)
    return passed("host", "policy", f"{config.policy} can be loaded")
