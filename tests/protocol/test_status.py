"""A run seen and steered through its sockets: whoever connects, control goes on as if nobody did."""

import contextlib
import json
import socket
from functools import partial

import msgspec
import pytest
import trio

from qmpalloc.control.controller import Controller
from qmpalloc.errors import DeadlineError, DisconnectedError, NonsenseError, RefusedError, UnreachableError
from qmpalloc.events import Asked, CaughtUp, ControlChanged, Decided, Ended, Faulted, Request, Sampled, encode
from qmpalloc.model import Limiter
from qmpalloc.policy import load
from qmpalloc.rules.hostguard import HostMemory
from qmpalloc.status import server as serving
from qmpalloc.status.client import ask, attach
from qmpalloc.status.feed import Feed
from qmpalloc.status.place import REQUESTS, STATUS, listening
from qmpalloc.status.protocol import FORMAT, LINE_MAX_BYTES, VERSION, encode_request
from qmpalloc.status.server import Server
from qmpalloc.testing.serving import serve_unix
from qmpalloc.tui import Dashboard
from qmpalloc.units import GIB, MIB


class Run:
    """A run of the lab that is served, and the paths of its sockets."""

    def __init__(self, lab, controller):
        self.lab = lab
        self.controller = controller
        self.status = lab.directory / f"run.{STATUS}"
        self.requests = lab.directory / f"run.{REQUESTS}"

    async def ask(self, verb, guest=None, **more):
        return await ask(self.requests, Request(verb=verb, guest=guest, **more))

    def last_verdict(self, name):
        event = self.lab.of(Decided)[-1]
        return next(each for each in event.decision.guests if each.name == name)

    async def raw(self, path, data, *, then=True):
        """Send bytes and return all that comes back."""
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(data)
            if then:
                stream.socket.shutdown(socket.SHUT_WR)
            parts = []
            with contextlib.suppress(trio.BrokenResourceError):
                while part := await stream.receive_some():
                    parts.append(part)
        return b"".join(parts)


@pytest.fixture
async def served(lab, nursery):
    """Returns a function that begins a served run of policy ``paper``, which is in control when it returns."""

    async def begin(*, mode="run", policy=None, settle_s=4.0, **settings):
        lab.control["on_exit"] = "baseline"
        feed, loaded = Feed(), lab.config("paper", **settings)
        controller = Controller(
            loaded, policy or load("paper", loaded.policy_settings), lab.events.append, feed, mode=mode
        )
        run = Run(lab, controller)

        async def live(*, task_status):
            with listening(run.status) as status, listening(run.requests) as requests:
                server = Server(feed, controller)
                async with trio.open_nursery() as inner:
                    await inner.start(partial(server.run, status, requests))
                    task_status.started()
                    await controller.run()
                    await server.end()

        await nursery.start(live)
        await trio.sleep(settle_s + 0.25)
        return run

    return begin


def dashboard_of(events):
    dashboard = Dashboard()
    for event in events:
        dashboard.apply(event)
    return dashboard


def told(lab, kind, says):
    """Whether one fault of a kind was told, which says this."""
    return [says in event.message for event in lab.of(Faulted) if event.kind == kind] == [True]


async def until_caught_up(run):
    events = [run.header]
    while not isinstance(events[-1], CaughtUp):
        events.append(await run.next())
    return events


async def test_who_attaches_late_sees_the_state_then_all_that_happens_then_the_end(lab, served, autojump_clock):
    await lab.two()
    run = await served()
    await trio.sleep(20.0)
    async with attach(run.status) as attached:
        events = await until_caught_up(attached)
        early, late = dashboard_of(lab.events), dashboard_of(events)
        assert late.guests == early.guests
        assert late.summarizer.summary == early.summarizer.summary
        known = len(lab.events)
        await trio.sleep(10.0)
        run.controller.quit()
        live = [await attached.next()]
        while not isinstance(live[-1], Ended):
            live.append(await attached.next())
    assert [encode(event) for event in live] == [encode(event) for event in lab.events[known:]]
    assert late.pid


async def test_who_attaches_before_the_run_begins_waits_for_it(lab, nursery, autojump_clock):
    await lab.two()
    feed = Feed()
    controller = Controller(lab.config(), load("paper", {}), lab.events.append, feed)
    path = lab.directory / f"run.{STATUS}"
    with listening(path) as status, listening(lab.directory / "r") as requests:
        async with trio.open_nursery() as inner:
            await inner.start(partial(Server(feed, controller).run, status, requests))

            async def begin():
                await trio.sleep(3.0)
                await controller.run(duration_s=5.0)

            inner.start_soon(begin)
            async with attach(path) as attached:
                assert encode((await until_caught_up(attached))[0]) == encode(lab.events[0])
            inner.cancel_scope.cancel()


async def test_ten_see_the_same(lab, served, autojump_clock, nursery):
    await lab.two()
    run = await served()
    await trio.sleep(0.5)  # all attach in a moment in which nothing happens
    seen = [[] for _ in range(10)]

    async def look(events):
        async with attach(run.status) as attached:
            await until_caught_up(attached)
            while not events or not isinstance(events[-1], Ended):
                events.append(await attached.next())

    for each in seen:
        nursery.start_soon(look, each)
    await trio.sleep(10.0)
    run.controller.quit()
    await trio.sleep(10.0)
    assert all(events == seen[0] for events in seen)
    assert sum(isinstance(event, Sampled) for event in seen[0]) >= 10


async def test_one_that_never_reads_is_dropped_and_told_and_delays_nothing(lab, served, autojump_clock, monkeypatch):
    monkeypatch.setattr(serving, "WAITING_MAX_BYTES", 20_000)
    await lab.two()
    run = await served()
    async with await trio.open_unix_socket(str(run.status)) as silent:
        silent.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        async with attach(run.status) as attached:
            await until_caught_up(attached)
            begun = len(lab.of(Decided))
            with trio.fail_after(600):
                while not (faults := lab.of(Faulted)):
                    await attached.next()
        assert "was dropped: it does not read" in faults[0].message
        assert faults[0].hint
        assert (faults[0].t - 4.0) / 2.0 - (len(lab.of(Decided)) - begun) < 4
        gaps = [b.t - a.t for a, b in zip(lab.of(Decided), lab.of(Decided)[1:], strict=False)]
        assert max(gaps) == pytest.approx(2.0, abs=0.01)
        with contextlib.suppress(trio.BrokenResourceError):
            while await silent.receive_some():
                pass


async def test_one_that_takes_nothing_for_long_is_dropped_whatever_little_there_is(
    lab, served, autojump_clock, monkeypatch
):
    monkeypatch.setattr(serving, "STALL_S", 3.0)
    await lab.two()
    run = await served()
    async with await trio.open_unix_socket(str(run.status)):
        with trio.fail_after(1000):
            while not lab.of(Faulted):  # noqa: ASYNC110 - in virtual time
                await trio.sleep(5.0)
        assert told(lab, "status", "was dropped: it does not read")


async def test_one_that_vanishes_is_forgotten(lab, served, autojump_clock):
    await lab.two()
    run = await served()
    for _ in range(serving.CLIENTS_MAX + 5):
        async with attach(run.status) as attached:
            await attached.next()
    await trio.sleep(5.0)
    async with attach(run.status) as attached:
        assert isinstance((await until_caught_up(attached))[-1], CaughtUp)
    assert not lab.of(Faulted)


async def test_more_than_so_many_are_turned_away(lab, served, autojump_clock, monkeypatch):
    monkeypatch.setattr(serving, "CLIENTS_MAX", 1)
    await lab.two()
    run = await served()
    async with attach(run.status):
        with pytest.raises(DisconnectedError):
            async with attach(run.status):
                pass


async def test_the_socket_for_looking_takes_nothing(lab, served, autojump_clock):
    await lab.two()
    run = await served()
    received = await run.raw(run.status, encode_request(Request(verb="pause")), then=False)
    assert received.startswith(b'{"type":"header"')
    assert run.controller.control == "running"
    assert told(lab, "status", "sends, where there is only to read")


async def test_a_stream_that_is_cut_is_told(lab, served, autojump_clock, nursery):
    await lab.two()
    run = await served()

    async def cut(stream):
        await stream.send_all(encode(lab.events[0]) + b"\n" + encode(lab.events[1])[:20])

    path = lab.directory / f"cut.{STATUS}"
    await nursery.start(serve_unix, str(path), cut)
    async with attach(path) as attached:
        with pytest.raises(DisconnectedError, match="closed the stream before its run had ended") as caught:
            await attached.next()
    assert caught.value.hint
    assert run.controller.control == "running"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"type":"header","format":"qmpalloc-record","version":2}\n', "speaks version 2, and this is version 1"),
        (b'{"QMP": {"version": {}}}\n', "no qmpalloc answers here"),
        (b"\xff\xfe\n", "no qmpalloc answers here"),
    ],
)
async def test_another_version_or_something_else_is_refused_with_a_hint(tmp_path, nursery, autojump_clock, line, says):
    path = tmp_path / f"x.{STATUS}"
    await nursery.start(serve_unix, str(path), lambda stream: stream.send_all(line))
    with pytest.raises(NonsenseError, match=says) as caught:
        async with attach(path):
            pass
    assert "version" in caught.value.hint


async def test_where_nobody_serves_it_is_said(tmp_path, autojump_clock):
    with pytest.raises(UnreachableError):
        await ask(tmp_path / "none", Request(verb="pause"))


async def test_a_controller_that_is_stopped_is_not_waited_for(tmp_path, nursery, autojump_clock):
    path = tmp_path / f"x.{STATUS}"

    async def say_nothing(stream):
        await trio.sleep_forever()

    await nursery.start(serve_unix, str(path), say_nothing)
    with pytest.raises(DeadlineError, match="the controller does not answer") as caught:
        async with attach(path):
            pass
    assert caught.value.hint == "is its process stopped?"
    with pytest.raises(DeadlineError, match="the controller does not answer") as caught:
        await ask(path, Request(verb="pause"))
    assert "qmpalloc status" in caught.value.hint


# --- what people ask --------------------------------------------------------------------------------------------


async def test_a_size_is_set_held_to_and_released(lab, served, autojump_clock):
    await lab.two()
    run = await served()
    answer = await run.ask("set", "large", size_bytes=700 * MIB)
    assert answer.message == "large is to have 700M until the run ends"
    await trio.sleep(8.0)
    assert (lab.size("large"), lab.size("small")) == (700, 300)
    assert run.last_verdict("large").limiter is Limiter.PERSON
    await trio.sleep(20.0)
    assert lab.size("large") == 700
    await run.ask("release", "large")
    await trio.sleep(10.0)
    assert run.last_verdict("large").limiter is not Limiter.PERSON
    run.controller.quit()
    await trio.sleep(20.0)
    assert lab.size("large") == lab.size("small") == 500
    assert [(e.verb, e.guest, e.error) for e in lab.of(Asked)] == [("set", "large", ""), ("release", "large", "")]
    assert lab.of(Asked)[0].by.startswith("process ")
    lab.check_invariants(run.controller.config)


async def test_it_takes_effect_at_once_and_also_while_paused(lab, served, autojump_clock):
    await lab.two()
    run = await served()
    await run.ask("pause")
    assert run.controller.control == "paused"
    await run.ask("set", "small", size_bytes=400 * MIB)
    assert run.last_verdict("small").reason == "set to 400M"
    await trio.sleep(1.5)
    assert lab.size("small") == 400
    await run.ask("resume")
    assert run.controller.control == "running"
    assert [e.control for e in lab.of(ControlChanged)][-2:] == ["paused", "running"]


async def test_it_ends_by_itself(lab, served, autojump_clock):
    await lab.two()
    run = await served()
    await run.ask("hold", "small", for_s=10.0)
    held = run.last_verdict("small")
    assert held.limiter is Limiter.PERSON
    assert held.reason.endswith("10 s left")
    size = lab.size("small")
    await trio.sleep(8.0)
    assert lab.size("small") == size
    await trio.sleep(10.0)
    assert lab.size("small") < size
    ended = lab.of(Asked)[-1]
    assert (ended.verb, ended.detail) == ("release", "small is the policy's again: its time is over")


async def test_back_to_baseline_ends_all_that_was_chosen(lab, served, autojump_clock):
    await lab.two()
    run = await served()
    await run.ask("set", "small", size_bytes=400 * MIB)
    await trio.sleep(5.0)
    run.controller.return_to_baseline()
    await trio.sleep(10.0)
    assert lab.size("small") == 500


@pytest.mark.parametrize(
    ("guest", "size_mib", "says"),
    [
        ("large", 801, "its cap is 800M"),
        ("large", 150, "its floor is 200M"),
        ("nobody", 500, "no guest is called 'nobody'"),
        ("\x1b[2J", 500, "no guest is called '?[2J'"),
        ("large", 0, "set needs a size above 0"),
    ],
)
async def test_what_cannot_be_is_refused_with_its_reason_and_told(lab, served, autojump_clock, guest, size_mib, says):
    await lab.two()
    run = await served()
    with pytest.raises(RefusedError) as caught:
        await run.ask("set", guest, size_bytes=size_mib * MIB)
    assert says in caught.value.message
    assert caught.value.hint
    assert says in lab.of(Asked)[-1].error
    await trio.sleep(5.0)
    assert run.last_verdict("large").limiter is not Limiter.PERSON


async def test_more_than_the_others_can_give_is_refused(lab, served, autojump_clock):
    await lab.two()
    run = await served()
    await run.ask("set", "small", size_bytes=500 * MIB)
    with pytest.raises(RefusedError, match="does not fit the budget"):
        await run.ask("set", "large", size_bytes=501 * MIB)


async def test_less_than_it_needs_is_refused(lab, served, autojump_clock):
    await lab.two()
    run = await served()
    run.controller.guests[0].memory._needed_bytes = 450 * MIB
    with pytest.raises(RefusedError, match="with what it cannot give up"):
        await run.ask("set", "small", size_bytes=400 * MIB)


@pytest.mark.parametrize("mode", ["watch", "dry-run"])
async def test_a_run_that_changes_nothing_takes_no_orders(lab, served, autojump_clock, mode):
    await lab.two()
    run = await served(mode=mode)
    for verb in ("pause", "hold"):
        with pytest.raises(RefusedError, match="changes nothing"):
            await run.ask(verb, "large")


async def test_while_the_host_is_short_nobody_grows(lab, served, autojump_clock):
    await lab.two()
    run = await served()
    await run.ask("set", "large", size_bytes=700 * MIB)
    await trio.sleep(8.0)
    run.controller._decider._read_host = lambda: HostMemory(available_bytes=100 * MIB, total_bytes=8 * GIB)
    await trio.sleep(3.0)
    with pytest.raises(RefusedError, match="the host is short of memory"):
        await run.ask("set", "small", size_bytes=600 * MIB)
    await trio.sleep(8.0)
    assert run.last_verdict("large").limiter in {Limiter.HOST, Limiter.FLOOR, Limiter.STEP}
    assert lab.size("large") < 700


LINE = {"format": FORMAT, "version": VERSION}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"hello\n", "not a request"),
        (b"\xff\x00\n", "not a request"),
        (b"[" * 3000 + b"\n", "not a request"),
        (b"x" * (LINE_MAX_BYTES + 100), "not a request"),
        (b'{"format":"qmpalloc-request","version":1,"request":{"verb":"explode"}}\n', "not a request"),
        (json.dumps(LINE | {"request": {"verb": "set", "guest": "small", "size_bytes": "1G"}}).encode(), "not a requ"),
        (json.dumps(LINE | {"request": {"verb": "pause"}, "more": 1}).encode(), "not a request"),
        (json.dumps(LINE | {"version": 2}).encode(), "of version 2, and the controller knows version 1"),
    ],
)
async def test_junk_is_refused_with_a_hint_told_and_changes_nothing(lab, served, autojump_clock, line, says):
    await lab.two()
    run = await served()
    answer = json.loads(await run.raw(run.requests, line))
    assert answer["done"] is False
    assert says in answer["message"]
    assert answer["hint"]
    assert told(lab, "request", says)
    assert run.controller.control == "running"


async def test_junk_again_and_again_is_not_told_each_time_and_delays_nothing(lab, served, autojump_clock, nursery):
    await lab.two()
    run = await served()
    for _ in range(40):
        await run.raw(run.requests, b"junk\n")
    assert len(lab.of(Faulted)) == serving.TELL_AT_ONCE
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3 * serving.REQUESTS_MAX):  # connected, and silent
            await stack.enter_async_context(await trio.open_unix_socket(str(run.requests)))
        await trio.sleep(serving.REQUEST_S + 1.0)
        assert (await run.ask("hold", "small")).done
    gaps = [b.t - a.t for a, b in zip(lab.of(Decided), lab.of(Decided)[1:], strict=False)]
    assert max(gaps) <= 2.01


async def test_a_defect_in_serving_ends_the_service_and_not_the_run(lab, served, autojump_clock, monkeypatch):
    await lab.two()
    run = await served()
    monkeypatch.setattr(Feed, "so_far", lambda *_: 1 / 0)
    with pytest.raises((DisconnectedError, NonsenseError)):
        async with attach(run.status) as attached:
            await attached.next()
    await trio.sleep(5.0)
    assert told(lab, "status", "nobody can attach any more")
    assert run.controller.control == "running"


def test_what_the_record_keeps_of_it_can_be_read_again():
    asked = Asked(t=1.0, wall=2.0, verb="set", guest="web", size_bytes=5, for_s=6.0, by="process 7", error="no")
    assert msgspec.json.decode(encode(asked), type=Asked) == asked
