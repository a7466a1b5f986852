"""The real controller with policy ``curve``: sampled accesses arrive over the agent, and memory goes where it saves."""

from itertools import pairwise

import numpy as np
import pytest
import trio
from msgspec import structs

from qmpalloc.control.sampling import SAMPLES_BYTES_PER_S, SAMPLES_CHUNK_BYTES
from qmpalloc.curves.observer import NOT_SAMPLED
from qmpalloc.curves.samples import Batch, pack
from qmpalloc.curves.tracker import CurveTracker
from qmpalloc.curves.tuning import TUNING
from qmpalloc.events import CurveSeen, Decided, Faulted, Sampled, SampleRejected, SamplesDropped, decoder, encoder
from qmpalloc.experiment.spec.access import Uniform
from qmpalloc.sim.replay import ReplayGuest, mixed
from qmpalloc.tui import Dashboard
from qmpalloc.units import MIB

SAMPLES = "/run/qmpalloc/samples.bin"


def reader(name, file_mib, accesses_per_s=12_000.0, **changes):
    """A guest that reads a file at random: each of its pages is worth the same, whatever the size."""
    return ReplayGuest(
        name, Uniform(), file_bytes=file_mib * MIB, accesses_per_s=accesses_per_s, size_bytes=500 * MIB,
        floor_bytes=200 * MIB, cap_bytes=800 * MIB, observed=False, scale=32, **changes,
    )  # fmt: skip


async def pair(lab):
    """A guest whose file fits with room to spare, and one that could use that room."""
    await lab.add("small", load=reader("small", 100))
    await lab.add("large", load=reader("large", 560))


def last(lab):
    decided = lab.of(Decided)[-1]
    return {
        verdict.name: (seen, verdict)
        for seen, verdict in zip(decided.snapshot.guests, decided.decision.guests, strict=True)
    }


def most(lab, name):
    """The most MiB that the guest was given by any decision; at the end it is back at its baseline."""
    return max(event.decision.target_of(name) for event in lab.of(Decided)) // MIB


async def test_memory_goes_to_where_it_saves_most_and_then_rests(lab, autojump_clock):
    await pair(lab)
    await lab.run(240.0, "curve")
    seen, _ = last(lab)["large"]
    assert seen.curve.weak == ()
    # small needs 160 MiB of its own, its file and the margin; large takes what it can use of the rest.
    assert seen.actual_bytes >= 660 * MIB
    hits, misses = seen.hits, seen.misses
    assert misses < 0.1 * (hits + misses)
    moved = [event.t for event in lab.of(Decided) if event.decision.moves]
    assert moved
    assert moved[-1] < 150.0
    reasons = [
        verdict.reason
        for event in lab.of(Decided)
        for verdict in event.decision.guests
        if verdict.name == "large" and event.decision.moves
    ]
    assert all("pages/s again that it had to drop" in why or "misses/s" in why for why in reasons)
    assert not lab.of(SamplesDropped)


async def test_without_samples_everything_but_the_curve_works(lab, autojump_clock):
    await pair(lab)
    for guest in lab.guests.values():
        guest.sampling = False
        guest.agent.files.pop(SAMPLES, None)
    await lab.run(30.0, "curve")
    for seen, verdict in last(lab).values():
        assert seen.curve is None
        assert verdict.reason == f"no curve: {NOT_SAMPLED} ({SAMPLES} cannot be read)"
        assert seen.hits > 0
    assert not lab.of(SamplesDropped)
    assert not lab.of(SampleRejected)
    # It is not asked for them every second.
    for guest in lab.guests.values():
        opened = [arguments for command, arguments in guest.agent.requests if command == "guest-file-open"]
        assert sum(arguments["path"] == SAMPLES for arguments in opened) <= 4


async def test_samples_that_cannot_be_used_are_told_and_the_counters_go_on(lab, autojump_clock):
    await pair(lab)
    guest = lab.guests["large"]
    guest.sampling = False
    guest.agent.files[SAMPLES] = bytes(2_000_000)
    await lab.run(20.0, "curve")
    dropped = lab.of(SamplesDropped, "large")
    assert dropped
    assert {event.message for event in dropped} == {"huge: the samples file holds more than 65536 events"}
    assert not lab.of(SamplesDropped, "small")
    assert len(lab.of(Sampled, "large")) >= 18
    assert not lab.of(SampleRejected)
    assert not lab.of(Faulted)


async def test_samples_that_take_too_long_do_not_delay_the_counters(lab, autojump_clock):
    await pair(lab)
    slow = lab.guests["large"].agent
    opened = slow.commands["guest-file-open"]

    def open_slowly(arguments):
        slow.faults.delay_s = 0.7 if arguments["path"] == SAMPLES else 0.0
        return opened(arguments)

    slow.commands["guest-file-open"] = open_slowly
    await lab.run(40.0, "curve")
    dropped = lab.of(SamplesDropped, "large")
    assert "within 0.5 s" in dropped[0].message
    pauses = [later.t - earlier.t for earlier, later in pairwise(dropped)]
    assert all(1.0 <= pause < 4.0 for pause in pauses[:2])  # then less and less often
    assert pauses[2:] == sorted(pauses[2:])
    assert 10.0 <= pauses[-1] < 13.0
    arrivals = [event.t for event in lab.of(Sampled, "large")]
    assert max(later - earlier for earlier, later in pairwise(arrivals)) < 5.0
    assert not lab.of(Faulted)


async def test_misses_that_the_disks_do_not_confirm_hold_a_guest(lab, autojump_clock):
    await pair(lab)
    large = lab.guests["large"]
    stats = {"rd_bytes": 0, "rd_operations": 0, "rd_total_time_ns": 0}
    large.qemu.commands["query-blockstats"] = lambda _: [{"device": "data", "stats": stats}]
    await lab.run(60.0, "curve")
    seen, verdict = last(lab)["large"]
    assert seen.disk_read_pages == 0
    assert "but its disks read 0 pages" in verdict.reason
    assert most(lab, "large") == 500


@pytest.mark.parametrize("lies", [False, True])
async def test_nor_is_one_believed_that_hides_its_samples(lab, autojump_clock, lies):
    await pair(lab)
    large = lab.guests["large"]
    large.sampling = False
    large.agent.files.pop(SAMPLES, None)
    stats = {"rd_bytes": 0, "rd_operations": 0, "rd_total_time_ns": 0}
    if lies:
        large.qemu.commands["query-blockstats"] = lambda _: [{"device": "data", "stats": stats}]
    await lab.run(60.0, "curve")
    seen, _ = last(lab)["large"]
    assert seen.curve is None
    if lies:
        assert (seen.disk_read_pages, seen.disk_read_pages_lately) == (0, 0)
        assert seen.page_ins_lately > 2_000
        assert most(lab, "large") == 500
    else:
        assert most(lab, "large") > 500


async def forger(lab):
    """A pair of which `small` ships samples of a file far larger than its own: its counters say it misses nothing."""
    await pair(lab)
    small = lab.guests["small"]
    random, true_batch = np.random.default_rng(1), small.batch

    def forged(cache):
        batch = true_batch(cache)
        keys = random.integers(0, 3_000, len(batch.events)).astype(np.uint64)
        return structs.replace(batch, events=mixed(keys) >> np.uint64(4) << np.uint64(4))

    small.batch = forged


async def test_a_guest_that_claims_a_curve_it_does_not_have_gains_nothing(lab, autojump_clock):
    await forger(lab)
    await lab.run(120.0, "curve")
    seen, verdict = last(lab)["small"]
    assert seen.curve.weak
    assert "measured are 0.00" in verdict.reason or "working sets" in verdict.reason
    assert most(lab, "small") == 500


class Spoilt:
    """Sampled accesses of a guest that go wrong from a time on."""

    def __init__(self, lab, name, how, after_s):
        self.lab, self.name, self.how = lab, name, how
        self.begin_s = trio.current_time() + after_s
        self.size_then = None
        self.served, self.next = [], 0
        self.true_batch, lab.guests[name].batch = lab.guests[name].batch, self.batch

    def batch(self, cache):
        batch = self.true_batch(cache)
        if trio.current_time() < self.begin_s:
            self.next = batch.first + len(batch.events)
            return batch
        self.size_then = self.size_then or self.lab.size(self.name)
        self.served.append(batch)
        return getattr(self, self.how)(batch)

    def lost(self, batch):
        return structs.replace(batch, first=batch.first + 1_000)

    def reordered(self, batch):
        return self.served[0] if len(self.served) % 2 else batch

    def repeated(self, _):
        return self.served[0]

    def coarser(self, batch):
        """Every other block is left out."""
        kept = structs.replace(batch, first=self.next, shift=7, events=batch.events[batch.events & np.uint64(16) == 0])
        self.next += len(kept.events)
        return kept

    def another_inode(self, batch):
        """The file has another inode, or another generation of it: all of its pages have other keys."""
        return structs.replace(batch, events=mixed(batch.events) >> np.uint64(4) << np.uint64(4))


async def test_nor_does_it_where_no_guest_has_a_good_curve_and_ghost_hits_decide(lab, autojump_clock):
    await forger(lab)
    Spoilt(lab, "large", "lost", 8.0)
    await lab.run(50.0, "curve")
    assert all(seen.curve.weak for seen, _ in last(lab).values())
    sizes = {
        (verdict.name, verdict.target_bytes // MIB) for event in lab.of(Decided) for verdict in event.decision.guests
    }
    assert sizes == {("small", 500), ("large", 500)}


@pytest.mark.parametrize(
    ("how", "after_s", "for_s", "why", "told"),
    [
        ("lost", 15.0, 40.0, "of the samples were lost", "1000 sampled accesses were lost"),
        ("reordered", 15.0, 40.0, "", "backwards: the samples are older than those before"),
        ("repeated", 10.0, 45.0, "no samples for", ""),
        ("another_inode", 80.0, 10.0, "the load has changed", ""),
    ],
)
async def test_bad_samples_are_shown_and_hold_their_guest(lab, autojump_clock, how, after_s, for_s, why, told):
    await pair(lab)
    spoilt = Spoilt(lab, "large", how, after_s)
    await lab.run(after_s + for_s, "curve")
    # Shown: why its curve is not used, in each decision; what was refused or lost, in the log. Held: it gets nothing.
    seen, verdict = last(lab)["large"]
    assert any(why in reason for reason in seen.curve.weak)
    assert verdict.reason.startswith("weak curve: ")
    targets = {
        verdict.target_bytes // MIB
        for event in lab.of(Decided)
        if event.t > after_s
        for verdict in event.decision.guests
        if verdict.name == "large"
    }
    assert targets == {spoilt.size_then}
    dashboard = Dashboard()
    for event in lab.events:
        dashboard.apply(event)
    assert any(told in entry.text for entry in dashboard.log if entry.guest == "large")
    assert dashboard.guests["large"].curve.weak == seen.curve.weak


async def test_a_rate_that_is_lowered_in_mid_run_is_shown_and_the_curve_goes_on(lab, autojump_clock):
    await pair(lab)
    Spoilt(lab, "large", "coarser", 15.0)
    await lab.run(120.0, "curve")
    seen, _ = last(lab)["large"]
    assert (seen.curve.pages_per_sampled, seen.curve.weak) == (128, ())
    assert seen.actual_bytes > 600 * MIB
    assert not lab.of(SamplesDropped, "large")


async def test_other_policies_decide_as_before_and_the_record_has_the_curves(lab, autojump_clock):
    await pair(lab)
    await lab.run(30.0, "static")
    seen, verdict = last(lab)["large"]
    assert seen.curve is not None
    assert verdict.target_bytes == seen.target_bytes
    line = encoder.encode(lab.of(Decided)[-1])
    assert decoder.decode(line) == lab.of(Decided)[-1]
    assert len(line) < 6_500  # two guests, the host among it


async def test_a_rebooted_guest_is_learnt_anew(lab, autojump_clock):
    await pair(lab)

    async def reboot():
        await trio.sleep(60.0)
        lab.guests["large"].reboot()

    lab.may_grow = lab.may_exceed = True  # a guest that boots may take what it likes
    lab.nursery.start_soon(reboot)
    await lab.run(75.0, "curve")
    seen, verdict = last(lab)["large"]
    assert seen.curve is None or seen.curve.weak
    # Shown, and held at its size until it is known again.
    assert verdict.reason.startswith(("weak curve: ", "no curve: ", "not fresh"))
    since = [
        (verdict.target_bytes // MIB, verdict.reason)
        for event in lab.of(Decided)
        if event.t > 60.0
        for verdict in event.decision.guests
        if verdict.name == "large"
    ]
    assert len({size for size, _ in since}) == 1, since


async def test_a_run_that_only_watches_shows_the_curves_once_an_interval(lab, autojump_clock):
    await pair(lab)
    lab.guests["small"].sampling = False
    lab.guests["small"].agent.files.pop(SAMPLES, None)
    await lab.run(21.0, "curve", mode="watch")
    assert not lab.of(Decided)
    large = lab.of(CurveSeen, "large")
    assert len(large) == 10  # an interval is 2 s
    assert large[-1].curve.sizes_bytes[0] == 200 * MIB
    (small,) = lab.of(CurveSeen, "small")  # what does not change is told once
    assert (small.curve, small.no_curve) == (None, f"{NOT_SAMPLED} ({SAMPLES} cannot be read)")
    assert decoder.decode(encoder.encode(large[-1])) == large[-1]
    dashboard = Dashboard()
    for event in lab.events:
        dashboard.apply(event)
    assert dashboard.guests["large"].curve == large[-1].curve
    assert dashboard.guests["small"].curve is None


def forging(agent, events):
    """Let an agent's samples file hold so many new events whenever it is opened; return the times of that."""
    opened_s = []

    def content():
        opened_s.append(trio.current_time())
        first = len(opened_s) * events
        keys = np.arange(first, first + events, dtype=np.uint64) << np.uint64(10)
        fields = {"boot_id": b"b" * 16, "start_id": b"s" * 8, "lost": 0, "shift": 6}
        return pack(Batch(**fields, first=first, accesses=64 * first, events=keys << np.uint64(4)))

    agent.files[SAMPLES] = content
    return opened_s


async def test_a_guest_that_forges_samples_is_asked_for_them_less_and_less_and_told_once(
    lab, autojump_clock, monkeypatch
):
    await pair(lab)
    guest = lab.guests["large"]
    guest.sampling = False
    opened_s = forging(guest.agent, 16_000)
    simulated = []
    observe = CurveTracker.observe
    monkeypatch.setattr(
        CurveTracker, "observe", lambda self, window: (simulated.append(len(window.keys)), observe(self, window))
    )
    await lab.run(200.0, "curve")
    waits_s = [after - before for before, after in pairwise(opened_s[1:])]
    assert waits_s == pytest.approx([10, 20, 40, 80], abs=2.1)
    assert max(simulated) <= TUNING.sampling.at_once
    (dropped,) = lab.of(SamplesDropped, "large")
    assert dropped.message == ("huge: more than 6000 sampled accesses at once, or 2500 a second: they count as lost")
    seen, _ = last(lab)["large"]
    assert seen.curve.weak[0].startswith("no samples") or "lost" in seen.curve.weak[0]
    assert len(lab.of(Sampled, "large")) >= 190
    assert not lab.of(SamplesDropped, "small")
    assert last(lab)["small"][0].curve.weak == ()


async def test_a_large_samples_file_is_read_less_often(lab, autojump_clock):
    await pair(lab)
    guest = lab.guests["large"]
    guest.sampling = False
    opened_s = forging(guest.agent, 60_000)
    await lab.run(8.0, "curve")
    assert opened_s[1] - opened_s[0] >= 60_000 * 8 / SAMPLES_BYTES_PER_S
    asked = [arguments["count"] for command, arguments in guest.agent.requests if command == "guest-file-read"]
    assert max(asked) == SAMPLES_CHUNK_BYTES
