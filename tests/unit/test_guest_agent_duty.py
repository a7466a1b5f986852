"""The duty cycle of the collector: when reads are counted, and what is estimated of those that are not."""

import random

import pytest

from guest_agent import bpf, collector
from guest_agent.duty import BURST_LEAST, BURST_MOST, WINDOW_EVERY, Duty, Estimate, Schedule

SECOND = 1_000_000_000


class Guest:
    """A clock, a load that hits so often a second and misses, and programs that see it while they are attached."""

    def __init__(self, hits_per_s, misses_per_s=100, *, seed=1):
        self.now_ns, self.attached, self.switches = 0, True, 0
        self.hits_per_s, self.misses_per_s = hits_per_s, misses_per_s
        self.accesses = self.counted = self.misses = 0.0
        self.random = random.Random(seed).random

    def pass_time(self, until_ns):
        while self.now_ns < until_ns:
            step = min(SECOND // 100, until_ns - self.now_ns)
            misses = self.misses_per_s * step / SECOND
            accesses = misses + self.hits_per_s(self.now_ns / SECOND) * step / SECOND
            self.accesses += accesses
            self.misses += misses
            self.counted += accesses if self.attached else 0
            self.now_ns += step

    def read(self):
        return round(self.counted), round(self.misses)

    def detach(self):
        assert self.attached
        self.attached, self.switches = False, self.switches + 1

    def attach(self):
        assert not self.attached
        self.attached, self.switches = True, self.switches + 1

    def run(self, duty, seconds):
        """Run a duty cycle as the reader does; return what each interval added, true and estimated."""
        found, before = [], (0.0, duty.end_interval(*self.read()))
        for second in range(1, seconds + 1):
            for when_ns, act in duty.steps(second * SECOND):
                self.pass_time(when_ns)
                act()
            self.pass_time(second * SECOND)
            now = self.accesses, duty.end_interval(*self.read())
            found.append(tuple(after - earlier for earlier, after in zip(before, now, strict=True)))
            before = now
        return found

    def duty(self, share, *, burst=0):
        return Duty(
            self, share, interval_ns=SECOND, burst=burst, read=self.read, clock=lambda: self.now_ns, random=self.random
        )  # fmt: skip


@pytest.mark.parametrize("burst", [0, 1, 15_000])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_is_kept(share, burst):
    schedule, counted, intervals = Schedule(share, burst=burst, random=random.Random(1).random), 0.0, 0
    while intervals < 15_000 or schedule.whole:
        counted += 1.0 if schedule.whole else schedule.window
        intervals += 1
        schedule.advance(1_000)
    assert counted / intervals == pytest.approx(share, rel=0.2)


def test_a_burst_ends_when_enough_was_accessed_or_time_is_up():
    lengths = []
    for accesses in (100_000, 1_000, 1):
        schedule = Schedule(0.1, burst=30_000, random=lambda: 0.5)
        while schedule.whole:
            schedule.advance(accesses)
            lengths.append(accesses)
    assert [lengths.count(accesses) for accesses in (100_000, 1_000, 1)] == [BURST_LEAST, 30, BURST_MOST]


def test_a_burst_is_counted_whole_and_comes_first():
    guest = Guest(lambda now_s: 5_000 + 4_000 * (int(now_s * 3) % 2))
    duty = guest.duty(0.1, burst=1)
    assert duty.sampling
    found = guest.run(duty, BURST_LEAST - 1)  # and the interval that ends at once
    assert [estimated for _, estimated in found] == pytest.approx([true for true, _ in found], abs=2)
    assert not duty.sampling
    assert duty.part() == {
        "share": 0.1, "attached_ms": (BURST_LEAST - 1) * 1000, "sampled": BURST_LEAST, "accesses_variance": 0
    }  # fmt: skip
    assert not guest.attached


def test_of_a_steady_load_hits_are_as_counted():
    guest = Guest(lambda _: 20_000)
    duty = guest.duty(0.1)
    found = guest.run(duty, 100)
    assert [each for _, each in found[10:]] == pytest.approx([true for true, _ in found[10:]], rel=0.01)
    assert duty.part()["attached_ms"] == pytest.approx(10_000, rel=0.1)
    assert guest.switches == pytest.approx(2 * 100 / WINDOW_EVERY, abs=2)


def test_of_a_bursty_load_hits_are_right_on_average_and_the_error_is_told():
    """Half of each five seconds is idle, at a fixed place: windows at a fixed place would see all or nothing."""
    guest = Guest(lambda now_s: 20_000 * (now_s % 5 < 2.5), seed=3)
    duty = guest.duty(0.1)
    found = guest.run(duty, 1_000)
    off = sum(estimated for _, estimated in found) - sum(true for true, _ in found)
    told = duty.part()["accesses_variance"] ** 0.5
    assert abs(off) < 2 * told
    assert told < 0.1 * guest.accesses
    assert told == pytest.approx((200 * 50_000**2) ** 0.5, rel=0.4)  # a window sees 100,000 or 0 where 50,000 are right


def test_an_estimate_never_falls():
    estimate = Estimate(10)
    estimate.count(-4)  # what read-ahead brought in was not read yet
    assert estimate.accesses == 10
    estimate.learn(6, SECOND // 10)
    estimate.wait(SECOND)
    assert estimate.accesses == 10 - 4 + 60


@pytest.mark.parametrize("duty", ["0", "2", "nan", "-0.5", "0.001"])
def test_what_is_no_share_is_refused(duty, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        collector.main(["--directory", str(tmp_path / "run"), "--duty", duty])
    assert ended.value.code == 2
    assert "--duty must be between 0.02 and 1: 0.1 counts cached reads" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_link_is_opened_again(monkeypatch):
    calls = []
    monkeypatch.setattr("os.close", lambda fd: calls.append(("close", fd)))
    monkeypatch.setattr(bpf, "_bpf", lambda command, attr: calls.append((command, attr.prog_fd)) or 9)
    link = bpf.Link(5, 6)
    link.detach()
    link.attach()
    link.detach()
    assert calls == [("close", 5), (17, 6), ("close", 9)]
