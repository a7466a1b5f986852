"""Who attaches late sees what one sees who was there from the beginning, however long that is ago."""

import msgspec
import pytest
from drawing import draw, reduce
from synthetic import WALL, run

from qmpalloc.events import Asked, CaughtUp, ControlChanged, Ended, Header, Reloaded, StateChanged, decoder, encode
from qmpalloc.status import feed as module
from qmpalloc.status.feed import NEWS, ROUTINE, Feed
from qmpalloc.tui.status import status_of


def fed(events):
    feed = Feed()
    for event in events:
        feed(event)
    return feed


def late(feed):
    return reduce(decoder.decode(encode(event)) for event in feed.so_far(7))


@pytest.mark.parametrize("seconds", [0, 12, 60, 600])
def test_late_and_early_see_the_same(seconds):
    events = list(run(3, seconds, troubles=True, curves=("", "too early", "none")))
    early, came_late = reduce(events), late(fed(events))
    assert draw(came_late, 160, 50) == draw(early, 160, 50)
    assert came_late.summarizer.summary == early.summarizer.summary
    assert msgspec.structs.replace(status_of(came_late), pid=0) == status_of(early)


def test_after_long_it_is_bounded_and_the_guests_look_the_same():
    events = list(run(3, 4000))
    feed = fed(events)
    so_far = feed.so_far(7)
    assert len(so_far) <= ROUTINE + NEWS + 20
    assert [type(so_far[0]), type(so_far[-1])] == [Header, CaughtUp]
    place = {id(event): index for index, event in enumerate(events)}
    order = [place[id(event)] for event in so_far[:-1]]
    assert order == sorted(set(order))
    early, came_late = reduce(events), reduce(so_far)
    assert came_late.guests == early.guests
    assert came_late.summarizer.summary == early.summarizer.summary
    assert came_late.moved_bytes == early.moved_bytes


def test_with_many_guests_the_latest_of_each_is_there_though_the_rest_is_not(monkeypatch):
    monkeypatch.setattr(module, "ROUTINE", 4)
    monkeypatch.setattr(module, "NEWS", 2)
    events = list(run(12, 300))
    early, came_late = reduce(events), late(fed(events))
    assert status_of(came_late).guests == status_of(early).guests
    assert (came_late.control, came_late.committed_bytes) == (early.control, early.committed_bytes)


def test_what_is_counted_is_whole_though_what_happened_is_not():
    events = list(run(3, 4000, troubles=True))
    early, came_late = reduce(events), reduce(fed(events).so_far(7))
    assert {name: guest.rejected for name, guest in came_late.guests.items()} == {
        name: guest.rejected for name, guest in early.guests.items()
    }
    assert any(guest.rejected for guest in early.guests.values())


def test_going_on_after_it_makes_no_difference():
    events = list(run(2, 120, troubles=True))
    feed = fed(events[:300])
    came_late = reduce([*feed.so_far(7), *events[300:]])
    assert came_late.summarizer.summary == reduce(events).summarizer.summary
    assert came_late.guests == reduce(events).guests


def test_before_the_run_has_begun_there_is_nothing():
    assert Feed().so_far(7) == ()


def test_a_guest_with_another_name_and_one_that_left_do_not_come_back_as_they_were():
    events = list(run(3, 60))
    kept = events[0].guests[:2]
    guests = (msgspec.structs.replace(kept[0], name="front"), kept[1])
    reloaded = Reloaded(t=61.0, wall=WALL, budget_bytes=1 << 30, guests=guests, renamed={"web": "front"})
    came_late = late(fed([*events, reloaded]))
    assert list(came_late.guests) == ["front", "db"]
    assert status_of(came_late).guests[0].actual_bytes == reduce(events).guests["web"].actual_bytes
    assert came_late.header.budget_bytes == 1 << 30
    assert came_late.guests["front"].moves_in == reduce(events).guests["web"].moves_in


def test_what_people_asked_is_in_the_log_and_as_a_line():
    asked = Asked(t=61.0, wall=WALL, verb="set", guest="web", by="process 9", error="too much")
    ended = Asked(t=62.0, wall=WALL, verb="release", guest="web", detail="web is the policy's again: its time is over")
    dashboard = late(fed([*run(2, 60), asked, ended]))
    assert [entry.text for entry in dashboard.log][-2:] == [
        "process 9: set web refused: too much",
        "by itself: web is the policy's again: its time is over",
    ]


def test_the_end_is_told_to_the_latest():
    assert late(fed(run(2, 60, end=True))).ended.clean
    assert isinstance(fed(run(2, 60, end=True)).so_far(7)[-2], Ended)
    assert {StateChanged, ControlChanged} <= {type(event) for event in fed(run(2, 60)).so_far(7)}
