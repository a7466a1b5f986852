"""``curve``: one belief per guest, the best split by all of them, and no move that does not repay itself."""

from __future__ import annotations

from msgspec import Struct, structs

from qmpalloc.config import Duration, Size
from qmpalloc.curves.value import Objective
from qmpalloc.errors import ConfigError
from qmpalloc.model import Decision, GuestSnapshot, Limiter, Snapshot
from qmpalloc.policy.curve import belief, explain, gate, memory, reclaim
from qmpalloc.policy.curve.belief import Belief, believe
from qmpalloc.policy.curve.memory import Memory
from qmpalloc.policy.curve.split import divide, take_slowly
from qmpalloc.rules.budget import room_bytes
from qmpalloc.units import MIB


class Tuning(Struct, frozen=True, kw_only=True):
    """All constants of the policy, by stage; each has been halved, doubled and left out (docs/results/ablation.md)."""

    memory: memory.Tuning = memory.Tuning()
    belief: belief.Tuning = belief.Tuning()
    gate: gate.Tuning = gate.Tuning()


class CurvePolicy:
    """Dynamic programming over what is believed of all guests."""

    class Settings(Struct, frozen=True, kw_only=True):
        """Settings of ``[policy]`` with ``name = "curve"``.

        Attributes:
            objective: ``hits``: most hits per second. ``misses``: fewest misses per second. ``fair``: largest sum of
                weight times the logarithm of each guest's speed.
            margin: Memory given to a guest but not credited: a curve's cliffs are not known to the page.
            least_gain: A move must improve the objective by this share of all accesses (``fair``: of all weights), but
                of no more than twice those of the guests whose sizes change; by as much more for each move of theirs
                that was taken back of late.
            horizon: How long a load is thought to last, if it has not lasted for longer and those before it have ended
                no sooner. Growth pays only from when the memory has been filled, by the misses of the guest that got
                it.
        """

        objective: Objective = "hits"
        margin: Size = Size(16 * MIB)
        least_gain: float = 0.003
        horizon: Duration = Duration(120.0)

    promises = True
    tuning = Tuning()

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        if not 0 <= self.settings.least_gain <= 1:
            raise ConfigError("is not from 0 to 1", key="least_gain", hint="0.003 is 3 in 1,000 of all accesses")
        if self.settings.horizon <= 0:
            raise ConfigError("must be above 0", key="horizon", hint='for example "120s"')

    def decide(self, snapshot: Snapshot) -> Decision:
        """Return the best split, or none with the reason; or probe a guest that is full of what nobody reads."""
        settings, tuning = self.settings, self.tuning
        known = memory.updated(memory.recalled(snapshot.carry), snapshot, float(settings.horizon), tuning.memory)
        # 1. A reclaim probe begins or ends. 2. A better split is worth the move. 3. All stays.
        known, decision = reclaim.probe(
            snapshot, known, settings.objective, float(settings.horizon), settings.least_gain
        )
        if decision is None:
            known, decision = self._split(snapshot, known)
        return structs.replace(decision, carry=memory.carried(known))

    def _split(self, snapshot: Snapshot, known: Memory) -> tuple[Memory, Decision]:
        settings, tuning = self.settings, self.tuning.belief
        beliefs = [self._belief(guest, snapshot, known) for guest in snapshot.guests]
        chosen = [one for one in beliefs if one.floor_bytes < one.cap_bytes]
        if not chosen:
            return known, explain.stay(beliefs, "no guest is known well enough", Limiter.STATE, tuning)
        room = room_bytes(snapshot, [one.guest.name for one in chosen])
        wanted = divide(chosen, room, settings.objective)
        if wanted is None:
            return known, explain.stay(beliefs, "the budget does not hold all floors", Limiter.BUDGET, tuning)
        now = {one.guest.name: one.guest.target_bytes for one in chosen}
        if sum(now.values()) <= room:
            reason = gate.against(
                chosen, wanted, known, snapshot.time_s,
                objective=settings.objective, least_gain=settings.least_gain, tuning=self.tuning.gate,
            )  # fmt: skip
            if reason:
                return known, explain.stay(beliefs, reason, Limiter.GATE, tuning)
        targets = take_slowly(chosen, wanted, room)
        known = gate.moved(known, now, targets, snapshot.time_s, self.tuning.gate)
        return known, explain.move(snapshot, beliefs, targets, wanted, tuning)

    def _belief(self, guest: GuestSnapshot, snapshot: Snapshot, remembered: Memory) -> Belief:
        settings, tuning, time_s = self.settings, self.tuning.memory, snapshot.time_s
        known, horizon_s = remembered.guests[guest.name], float(settings.horizon)
        held = guest.undecidable or guest.frozen
        if not held and remembered.squeeze is not None and remembered.squeeze.name == guest.name:
            held = "squeezed, until what it reads has taken the place of what it read before"
        return believe(
            guest,
            # Of a guest that has no curve for a moment it is not known whether its load is still the same.
            known.points if guest.curve is not None else (),
            memory.pace(guest, known, time_s, horizon_s, tuning),
            held=held,
            margin_bytes=min(int(settings.margin), max(0, (guest.cap_bytes - guest.floor_bytes) // 8)),
            tuning=self.tuning.belief,
        )
