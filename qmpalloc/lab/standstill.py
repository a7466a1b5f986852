"""When a load has hung: it still has reads to do, and does none."""

from __future__ import annotations

from collections.abc import Iterable

from qmpalloc.errors import HostError
from qmpalloc.experiment.records import Reading
from qmpalloc.lab.readings import reads_done

STANDSTILL_S = 120.0
STANDSTILL_TRIALS = 4


class Standstill:
    """Watches that every load goes on. A guest of which there is no reading counts as one that does not.

    Args:
        guests: Their names.
        interval_s: Length of a trial; a load may stand still for `STANDSTILL_S`, or four trials if they are longer.
        now_s: The time the loads began.
    """

    def __init__(self, guests: Iterable[str], *, interval_s: float, now_s: float) -> None:
        self.limit_s = max(STANDSTILL_S, STANDSTILL_TRIALS * interval_s)
        self._moved_s = dict.fromkeys(guests, now_s)
        self._reads: dict[str, int] = {}

    def note(self, readings: Iterable[Reading], *, now_s: float) -> None:
        """Take the readings of a trial.

        Raises:
            HostError: A load that is not finished has read nothing for too long.
        """
        for reading in readings:
            reads = reads_done(reading.load)
            finished = reading.load is not None and reading.load.finished
            if finished or reads != self._reads.get(reading.guest):
                self._reads[reading.guest] = reads
                self._moved_s[reading.guest] = now_s
        guest, moved_s = min(self._moved_s.items(), key=lambda item: item[1])
        if now_s - moved_s > self.limit_s:
            raise HostError(
                f"guest {guest}: its load has read nothing, as far as is known, for {now_s - moved_s:.0f} s"
            )
