"""What a configuration that was read again changes while a run goes on, and what it may not change."""

from __future__ import annotations

import os

from msgspec import Struct, structs

from qmpalloc.config import Config, GuestConfig
from qmpalloc.errors import ConfigError, QmpallocError

RESTART = "end the run and start it again"


class Changes(Struct, frozen=True, kw_only=True):
    """The difference of two configurations. A guest is who answers on its sockets, whatever it is called.

    Attributes:
        added: Guests that were not there.
        removed: Names of guests that are not there any more.
        changed: Guests that have other limits or another name, with their new configuration; by the name they had.
    """

    added: tuple[GuestConfig, ...] = ()
    removed: tuple[str, ...] = ()
    changed: dict[str, GuestConfig] = {}

    @property
    def renamed(self) -> dict[str, str]:
        """The old and the new name of the guests that have another."""
        return {name: guest.name for name, guest in self.changed.items() if guest.name != name}


def compare(old: Config, new: Config) -> Changes:
    """Return what is to be done to come from one configuration to another.

    Raises:
        ConfigError: They differ in what a run cannot change.
    """
    same_policy = (old.policy, old.policy_settings) == (new.policy, new.policy_settings)
    for key, same in (("control", old.control == new.control), ("policy", same_policy)):
        if not same:
            raise _unchangeable(new, key)
    by_monitor = {os.path.realpath(guest.monitor): guest for guest in old.guests}
    by_agent = {os.path.realpath(guest.agent): guest for guest in old.guests}
    changed, added = {}, []
    for index, guest in enumerate(new.guests):
        before = by_monitor.get(os.path.realpath(guest.monitor))
        if before is not by_agent.get(os.path.realpath(guest.agent)):
            raise _unchangeable(new, f"guest[{index}].{'monitor' if before is None else 'agent'}")
        if before is None:
            added.append(guest)
        else:
            changed[before.name] = guest
    removed = tuple(guest.name for guest in old.guests if guest.name not in changed)
    for index, guest in enumerate(new.guests):
        if guest.name in removed:  # it is there until it has gone home
            raise _unchangeable(new, f"guest[{index}].monitor")
    changed = {name: guest for name, guest in changed.items() if guest != old.guest(name)}
    return Changes(added=tuple(added), removed=removed, changed=changed)


def _unchangeable(new: Config, key: str) -> ConfigError:
    hint = f"give the guest another name, or {RESTART}" if key.endswith("monitor") else RESTART
    return ConfigError("cannot change while the run goes on", file=new.file, key=key, hint=hint)


def sockets(guest: GuestConfig) -> frozenset[str]:
    """Return where a guest's sockets really are: another name for them, or for the guest, does not make another."""
    return frozenset(map(os.path.realpath, (guest.monitor, guest.agent)))


def boot_bytes(guest: GuestConfig) -> int:
    """Return what a guest may occupy from the moment it starts until what moves its memory works."""
    return max(guest.cap, guest.vm.memory if guest.vm is not None else 0)


def with_budget(config: Config, new: Config) -> Config:
    """Return `config` with budget and guests of `new`."""
    return structs.replace(config, host=new.host, guests=new.guests)


def why_refused(error: Exception) -> tuple[str, str]:
    """Return message and hint, one line each, for a configuration that could not be taken."""
    if isinstance(error, ConfigError) and error.each:
        message = f"{error.each[0].file}: {'; '.join(f'{each.key}: {each.reason}' for each in error.each)}"
        return message, "qmpalloc doctor tells what to do about each; nothing was changed"
    if isinstance(error, QmpallocError):
        return error.message, f"{error.hint}; nothing was changed" if error.hint else "nothing was changed"
    return f"{type(error).__name__}: {error}", "nothing was changed"
