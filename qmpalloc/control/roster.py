"""What a configuration that was read again changes while a run goes on, and what it may not change."""

from __future__ import annotations

from msgspec import Struct, structs

from qmpalloc.config import Config, GuestConfig
from qmpalloc.errors import ConfigError

RESTART = "end the run and start it again"


class Changes(Struct, frozen=True, kw_only=True):
    """The difference of two configurations.

    Attributes:
        added: Guests that were not there.
        removed: Names of guests that are not there any more.
        changed: Guests that have other limits, with their new configuration.
    """

    added: tuple[GuestConfig, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[GuestConfig, ...] = ()


def compare(old: Config, new: Config) -> Changes:
    """Return what is to be done to come from one configuration to another.

    Raises:
        ConfigError: They differ in what a run cannot change.
    """
    same_policy = (old.policy, old.policy_settings) == (new.policy, new.policy_settings)
    for key, same in (("control", old.control == new.control), ("policy", same_policy)):
        if not same:
            raise ConfigError("cannot change while the run goes on", file=new.file, key=key, hint=RESTART)
    before_by_name = {guest.name: guest for guest in old.guests}
    for index, guest in enumerate(new.guests):
        before = before_by_name.get(guest.name)
        for key in ("monitor", "agent"):
            if before is not None and getattr(before, key) != getattr(guest, key):
                hint = f"give the guest another name, or {RESTART}"
                where = f"guest[{index}].{key}"
                raise ConfigError("cannot change while the run goes on", file=new.file, key=where, hint=hint)
    names = {guest.name for guest in new.guests}
    return Changes(
        added=tuple(guest for guest in new.guests if guest.name not in before_by_name),
        removed=tuple(name for name in before_by_name if name not in names),
        changed=tuple(
            guest for guest in new.guests if guest.name in before_by_name and guest != before_by_name[guest.name]
        ),
    )


def boot_bytes(guest: GuestConfig) -> int:
    """Return what a guest may occupy from the moment it starts until its balloon works."""
    return max(guest.cap, guest.vm.memory if guest.vm is not None else 0)


def with_budget(config: Config, new: Config) -> Config:
    """Return `config` with budget and guests of `new`."""
    return structs.replace(config, host=new.host, guests=new.guests)
