"""When a load has hung: it still has reads to do, and does none; or its generator says nothing any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from qmpalloc.errors import HostError
from qmpalloc.experiment.store.records import LoadProgress, Reading

STANDSTILL_S = 120.0
STANDSTILL_TRIALS = 4


class Standstill:
    """Watches that every load goes on. A guest of which there is no reading counts as one that does not.

    Reads go on when more of them are done. What a program does is not known: while one runs, or warms up, it is enough
    that the generator in the guest goes on writing.

    Args:
        guests: To the names of their phases of reads.
        interval_s: Length of a trial; a load may stand still for `STANDSTILL_S`, or four trials if they are longer.
        now_s: The time the loads began.
    """

    def __init__(self, guests: Mapping[str, Collection[str]], *, interval_s: float, now_s: float) -> None:
        self.limit_s = max(STANDSTILL_S, STANDSTILL_TRIALS * interval_s)
        self._moved_s = dict.fromkeys(guests, now_s)
        self._reading = guests
        self._seen: dict[str, tuple[int, int]] = {}

    def note(self, readings: Iterable[Reading], *, now_s: float) -> None:
        """Take the readings of a trial.

        Raises:
            HostError: A load that is not finished has come no further for too long.
        """
        for reading in readings:
            reads = reading.load.reads if reading.load is not None else 0
            seen = (reads, self._sign_of_life(reading.guest, reading.load))
            finished = reading.load is not None and reading.load.finished
            if finished or seen != self._seen.get(reading.guest):
                self._seen[reading.guest] = seen
                self._moved_s[reading.guest] = now_s
        guest, moved_s = min(self._moved_s.items(), key=lambda item: item[1])
        if now_s - moved_s > self.limit_s:
            raise HostError(
                f"guest {guest}: its load has come no further, as far as is known, for {now_s - moved_s:.0f} s"
            )

    def _sign_of_life(self, guest: str, load: LoadProgress | None) -> int:
        """Return what grows while a program runs or a next phase warms up; 0 while reads are to be done."""
        if load is None or not load.phases:
            return 0
        last = load.phases[-1]
        return 0 if not last.done and last.name in self._reading[guest] else load.sequence
