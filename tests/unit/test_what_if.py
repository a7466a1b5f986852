"""What another policy would have made of a recorded run, held against runs of which both are known."""

import gzip
import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from msgspec import structs

from qmpalloc import events
from qmpalloc.cli import main
from qmpalloc.errors import ConfigError, NonsenseError
from qmpalloc.model import Curve, GuestSnapshot, GuestState, Limiter, Snapshot, hold
from qmpalloc.policy import load
from qmpalloc.record import read_record
from qmpalloc.sim.what_if import recorded, what_if
from qmpalloc.units import MIB, PAGE_BYTES

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name):
    text = gzip.decompress((GOLDEN / f"{name}.jsonl.gz").read_bytes())
    return [msgspec.json.decode(line, type=Snapshot) for line in text.splitlines()]


CURVE = Curve(sizes_bytes=(256 * MIB, 768 * MIB), miss_ratio=(0.8, 0.2))


def snapshots(count=10, **changes):
    guest = GuestSnapshot(
        name="a", state=GuestState.FRESH, target_bytes=512 * MIB, actual_bytes=512 * MIB, charge_bytes=512 * MIB,
        floor_bytes=256 * MIB, cap_bytes=768 * MIB, baseline_bytes=512 * MIB, hits=400_000, misses=600_000,
        interval_s=10.0, curve=CURVE, miss_s=0.0, waits=0.0,
    )  # fmt: skip
    guest = structs.replace(guest, **changes)
    return [
        Snapshot(cycle=number, time_s=10.0 * number, budget_bytes=1024 * MIB, interval_s=10.0, guests=(guest,))
        for number in range(1, count + 1)
    ]


class To:
    """Sets the guest to a size."""

    def __init__(self, size_bytes):
        self.size_bytes, self.seen = size_bytes, []

    def decide(self, snapshot):
        self.seen.append(snapshot.guests[0])
        held = hold(snapshot, "so far")
        verdict = structs.replace(held.guests[0], target_bytes=self.size_bytes, limiter=Limiter.POLICY)
        return structs.replace(held, guests=(verdict,))


def test_the_same_sizes_miss_the_same():
    assert what_if(snapshots(), To(512 * MIB)) == recorded(snapshots())


@pytest.mark.parametrize(("size", "ratio"), [(384, 0.75), (256, 0.9), (640, 0.45), (768, 0.3)])
def test_another_size_misses_the_difference_on_the_curve(size, ratio):
    run = snapshots(30)
    policy = To(size * MIB)
    found = what_if(run, policy)
    assert found.accesses == 30_000_000
    assert policy.seen[-1].misses == pytest.approx(1_000_000 * ratio, rel=1e-3)
    assert policy.seen[-1].actual_bytes == size * MIB
    assert policy.seen[-1].curve.measured is None
    assert found.sizes_bytes == {"a": size * MIB}


def test_a_guest_that_is_reached_late_begins_with_the_size_that_it_has_then():
    here = snapshots()
    for number in range(3):
        away = structs.replace(
            here[number].guests[0], state=GuestState.CONNECTING, target_bytes=0, actual_bytes=0, hits=None, misses=None
        )
        here[number] = structs.replace(here[number], guests=(away,))
    assert what_if(here, load("static", {})).misses == recorded(here).misses


def test_a_cache_that_grows_is_filled_by_what_it_misses():
    slow = snapshots(30, hits=400, misses=600)
    policy = To(768 * MIB)
    what_if(slow, policy)
    misses = [guest.misses for guest in policy.seen]
    assert misses == sorted(misses, reverse=True)
    filled = 512 * MIB + sum(misses[1:-1]) * PAGE_BYTES
    assert misses[-1] == pytest.approx(1000 * (0.6 - 0.6 * (filled - 512 * MIB) / (512 * MIB)), abs=3)


def test_a_load_that_waits_is_shown_at_the_rate_that_follows():
    waiting = snapshots(hits=4000, misses=6000, miss_s=0.0015, waits=1.0, curve=CURVE)
    policy = To(256 * MIB)
    what_if(waiting, policy)
    assert policy.seen[0].interval_s == 10.0
    assert policy.seen[-1].interval_s == pytest.approx(10.0 + 0.3 * 10_000 * 0.0015, rel=1e-3)


def test_a_guest_without_a_curve_is_as_recorded_and_that_is_said():
    found = what_if(snapshots(curve=None), To(256 * MIB))
    assert (found.misses, found.unknown) == (6_000_000, 1.0)
    assert recorded(snapshots()).unknown == 0.0


def test_the_first_good_curve_of_a_load_is_used_for_what_went_before():
    weak = structs.replace(CURVE, miss_ratio=(0.0, 0.0), weak=("only 3 sampled accesses",), load=1)
    good = structs.replace(CURVE, load=1)
    run = [*snapshots(5, curve=weak), *snapshots(5, curve=good)]
    assert what_if(run, To(384 * MIB)).misses == what_if(snapshots(), To(384 * MIB)).misses


def test_danger_is_as_recorded_and_counted():
    found = what_if(snapshots(rescue_bytes=700 * MIB), To(256 * MIB))
    assert found.sizes_bytes == {"a": 700 * MIB}
    assert found.endangered == 10


@pytest.mark.parametrize(
    ("record", "policy", "run", "error"),
    [
        ("demo", "curve", "demo", 0.002),
        ("mmap-curve", "curve", "mmap-curve", 0.002),
        ("mmap-static", "static", "mmap-static", 1e-9),
        ("mmap-static", "curve", "mmap-curve", 0.02),
        ("mmap-curve", "static", "mmap-static", 0.02),
        ("program-grows", "curve", "program-grows", 0.025),
    ],
)
def test_what_is_foretold_is_near_what_the_other_run_missed(record, policy, run, error):
    foretold, counted = what_if(golden(record), load(policy, {})), recorded(golden(run))
    assert foretold.miss_ratio == pytest.approx(counted.miss_ratio, abs=error)


HEADER = {
    "type": "header", "t": 0, "wall": 0, "format": "qmpalloc-record", "version": 1, "mode": "run", "policy": "static",
    "policy_settings": {}, "budget_bytes": 1, "interval_s": 5, "guests": [], "config": {"policy_settings": {}},
    "versions": {"qmpalloc": "7.1"}, "host": {},
}  # fmt: skip


def write_record(path, run, **changes):
    lines = [json.dumps(HEADER | changes).encode()]
    for snapshot in run:
        decided = events.Decided(
            t=snapshot.time_s, wall=0.0, snapshot=snapshot, decision=hold(snapshot, ""), committed_bytes=0,
            duration_s=0.0,
        )  # fmt: skip
        lines.append(events.encode(decided))
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def shown(*words):
    return CliRunner().invoke(main, ["what-if", *map(str, words)], standalone_mode=False)


def test_the_command_shows_the_recorded_run_its_own_policy_and_those_asked_for(tmp_path):
    record = write_record(tmp_path / "record.jsonl", golden("mmap-static"))
    lines = shown(record, "--policy", "curve", "--policy", "paper,gate=dead-band,step=8MiB").output.splitlines()
    assert lines[0] == "25 decisions in 250 s, 1,032,403 accesses"
    assert [line.split("  ")[0] for line in lines[2:6]] == [
        "recorded", "static (its own)", "curve", "paper,gate=dead-band,step=8MiB",
    ]  # fmt: skip
    assert lines[2].split()[1:4] == lines[3].split()[3:6] == ["308,783", "1.00", "0.2991"]
    endangered = shown(write_record(tmp_path / "b.jsonl", snapshots(rescue_bytes=600 * MIB)), "--policy", "static")
    assert "warning: a guest was in danger at 10 of 10 decisions" in endangered.output


def test_a_record_that_is_none_or_holds_nothing_is_told(tmp_path):
    record = write_record(tmp_path / "record.jsonl", [])
    found = shown(record, "--policy", "static").exception
    assert isinstance(found, ConfigError)
    assert found.message == f"{record}: holds no decisions"
    assert "no setting" in str(shown(record, "--policy", "paper,gate").exception)
    assert isinstance(shown(record, "--policy", "nonsense").exception, ConfigError)


def test_a_record_of_another_version_names_both_and_who_wrote_it(tmp_path):
    record = write_record(tmp_path / "record.jsonl", [], version=2)
    with pytest.raises(NonsenseError) as caught:
        list(read_record(record))
    assert caught.value.message == f"{record}: a record of version 2; this qmpalloc reads version 1"
    assert caught.value.hint == "read it with the qmpalloc that wrote it: 7.1"
    broken = write_record(tmp_path / "broken.jsonl", [], guests=3)
    with pytest.raises(NonsenseError, match="the header is not understood"):
        list(read_record(broken))
