"""Both clients among peers that answer in any order, late, twice, in pieces, wrongly or never; callers that give up.

Hypothesis picks every step. Whatever it does: each caller gets its own answer or an error, never another's; an agent
never has two commands in flight; what is remembered of the past is bounded; no file stays open in the guest.
"""

import base64
import json
import threading
from contextlib import suppress

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from qmpalloc.errors import DisconnectedError, NonsenseError, QmpallocError, RefusedError
from qmpalloc.qmp import open_agent_on, open_monitor_on
from qmpalloc.qmp.agent_channel import ABANDONED_MAX
from qmpalloc.qmp.framing import LINE_MAX_BYTES, SENTINEL, Framer, decode, encode

MANNERS = st.sampled_from(["whole", "bytes", "twice"])
INDENTS = st.sampled_from([None, 4])  # a monitor with pretty=on sends messages over many lines
STRANGERS = st.sampled_from(
    [
        {"return": {}, "id": "qmpalloc-0"},
        {"return": {"n": 0}, "id": 1},
        {"error": {"class": "C", "desc": "d"}, "id": None},
    ]
)


class Call:
    """What one caller asked, and what came of it."""

    def __init__(self, number):
        self.number = number
        self.scope = trio.CancelScope()
        self.outcome = None

    @property
    def waits(self):
        return self.outcome is None


class Machine(RuleBasedStateMachine):
    """A client under test in a trio loop of its own thread; every rule runs in there until all is quiet."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.requests = []
        self.answered = set()
        self.hung_up = False
        self._ready, self._done = threading.Event(), trio.Event()
        self.clock = MockClock()  # stands still
        self._thread = threading.Thread(target=lambda: trio.run(self._main, clock=self.clock))
        self._thread.start()
        self._ready.wait()

    def do(self, action, *arguments):
        """Run an async function in the loop, and return when nothing moves any more."""

        async def act():
            await action(*arguments)
            await wait_all_tasks_blocked()

        trio.from_thread.run(act, trio_token=self._token)

    async def _main(self):
        self._token = trio.lowlevel.current_trio_token()
        client, self.server = memory_stream_pair()
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                nursery.start_soon(self._listen)
                async with self.open(client) as self.client:
                    self._ready.set()
                    await self._done.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._ready.set()

    async def _listen(self):
        framer = Framer()
        with suppress(trio.ClosedResourceError):
            while data := await self.server.receive_some(65536):
                for frame in framer.feed(data):
                    if isinstance(frame, bytes):
                        await self.hear(decode(frame))

    async def hear(self, request):
        self.requests.append(request)

    async def send(self, data, manner="whole"):
        if self.hung_up:
            return
        pieces = [data[i : i + 1] for i in range(len(data))] if manner == "bytes" else [data]
        for piece in pieces * (2 if manner == "twice" else 1):
            await self.server.send_all(piece)

    async def call(self, ask):
        """Start a caller: ``ask(number)`` must return that number."""
        call = Call(len(self.calls))
        self.calls.append(call)

        async def run():
            with call.scope:
                try:
                    call.outcome = await ask(call.number)
                except QmpallocError as error:
                    call.outcome = error
            if call.scope.cancelled_caught:
                call.outcome = "gave up"

        self.nursery.start_soon(run)

    def teardown(self):
        self._token.run_sync_soon(self._end)
        self._thread.join()

    def _end(self):
        self.clock.autojump_threshold = 0
        self._done.set()

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def time_passes(self, seconds):
        async def jump():
            self.clock.jump(seconds)

        self.do(jump)

    @invariant()
    def everybody_gets_their_own_answer(self):
        for call in self.calls:
            fine = call.waits or call.outcome in (call.number, "gave up") or isinstance(call.outcome, QmpallocError)
            assert fine, (call.number, call.outcome)

    @invariant()
    def the_end_reaches_everybody(self):
        if self.client.closed.is_set():
            assert not [call.number for call in self.calls if call.waits]


class MonitorMachine(Machine):
    waiting = Bundle("waiting")

    def open(self, client):
        return open_monitor_on(client, address="fake")

    async def hear(self, request):
        if request["execute"] == "qmp_capabilities":
            await self.send(encode({"return": {}, "id": request["id"]}))
        else:
            await super().hear(request)

    async def _listen(self):
        await self.send(
            encode({"QMP": {"version": {"qemu": {"major": 9, "minor": 0, "micro": 0}}, "capabilities": []}})
        )
        await super()._listen()

    async def _ask(self, number):
        return (await self.client.execute("echo", {"n": number}))["n"]

    @rule(target=waiting)
    def ask(self):
        self.do(self.call, self._ask)
        return len(self.calls) - 1

    @rule(number=waiting, manner=MANNERS, indent=INDENTS)
    def answer(self, number, manner, indent):
        for request in self.requests:
            if request["arguments"]["n"] == number:
                self.answered.add(number)
                reply = {"return": {"n": number}, "id": request["id"]}
                self.do(self.send, json.dumps(reply, indent=indent).encode() + b"\r\n", manner)
                assert not self.calls[number].waits

    @rule(number=waiting)
    def refuse(self, number):
        for request in self.requests:
            if request["arguments"]["n"] == number and number not in self.answered:
                was_waiting = self.calls[number].waits
                self.do(self.send, encode({"error": {"class": "C", "desc": f"not {number}"}, "id": request["id"]}))
                if was_waiting:
                    assert isinstance(self.calls[number].outcome, RefusedError)
                    assert f"not {number}" in self.calls[number].outcome.message

    @rule(number=consumes(waiting))
    def give_up(self, number):
        async def cancel():
            self.calls[number].scope.cancel()

        self.do(cancel)
        assert not self.calls[number].waits

    @rule(stranger=STRANGERS)
    def answer_what_nobody_asked(self, stranger):
        self.do(self.send, encode(stranger))

    @rule(count=st.sampled_from([1, 100]))
    def report(self, count):
        event = encode({"event": "X", "timestamp": {"seconds": 1, "microseconds": 1}, "data": {}})
        self.do(self.send, event * count)

    @precondition(lambda self: len(self.calls) > 3 and not self.hung_up)
    @rule(how=st.sampled_from([b"{]\n", b"\xff", b"[1]\n", b'{\n"a":\n{}\n', None]))
    def break_down(self, how):
        self.do(self.send, how) if how else self.do(self.server.aclose)
        self.hung_up = True
        assert self.client.closed.is_set()
        assert isinstance(self.client.cause, NonsenseError if how else DisconnectedError)

    @invariant()
    def only_those_who_wait_are_remembered(self):
        assert len(self.client._pending) == sum(call.waits for call in self.calls)
        assert self.client._connection.pending_bytes <= LINE_MAX_BYTES


class AgentMachine(Machine):
    def __init__(self):
        self.handles = {}
        self.opened = self.restarts = 0
        self.swallowed = set()
        self.torn = False  # what comes next belongs to a line that was begun
        super().__init__()

    def open(self, client):
        return open_agent_on(client, address="fake")

    async def hear(self, request):
        # The agent's rule: a command only after the answer to the one before; after a doubt, a sync first.
        if request["execute"] != "guest-sync-delimited" and self.requests:
            assert self.requests[-1]["id"] in self.answered, (self.requests[-1], request)
        await super().hear(request)

    async def _ask(self, number):
        return (await self.client.execute("echo", {"n": number}))["n"]

    async def _read(self, number):
        return int(await self.client.read_file(str(number), 100))

    @rule(reads=st.booleans())
    def ask(self, reads):
        self.do(self.call, self._read if reads else self._ask)

    def _answer_to(self, request):
        """Return what an honest agent answers, and do what it is told."""
        arguments, reply = request.get("arguments", {}), {"id": request["id"]}
        prefix = b""
        self.answered.add(request["id"])
        match request["execute"]:
            case "guest-sync-delimited":
                prefix, result = SENTINEL, arguments["id"]
            case "guest-file-open":
                self.opened += 1
                self.handles[self.opened] = arguments["path"]
                if self.torn:  # noise may swallow the answer, and then nobody can know of the file
                    self.swallowed.add(self.opened)
                result = self.opened
            case "guest-file-read" | "guest-file-close" if arguments["handle"] not in self.handles:
                # Else it was never opened; or it was closed, and nobody waited for the answer to that.
                closes_again = request["execute"] == "guest-file-close" and arguments["handle"] <= self.opened
                assert self.restarts or closes_again, request
                return encode({"error": {"class": "GenericError", "desc": "no such handle"}} | reply)
            case "guest-file-read":
                data = self.handles[arguments["handle"]].encode()
                result = {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": True}
            case "guest-file-close":
                del self.handles[arguments["handle"]]
                result = {}
            case _:
                result = arguments
        return prefix + encode({"return": result} | reply)

    @property
    def unanswered(self):
        return [request for request in self.requests if request["id"] not in self.answered]

    @precondition(lambda self: self.unanswered)
    @rule(manner=MANNERS)
    def answer_the_oldest(self, manner):
        """Agents answer in order, however late."""
        self.do(self.send, self._answer_to(self.unanswered[0]), manner)
        self.torn = False

    @precondition(lambda self: self.unanswered)
    @rule()
    def restart(self):
        """The agent starts again: its files are closed, and all commands but the newest are lost."""
        self.restarts += 1
        self.handles.clear()
        self.answered |= {request["id"] for request in self.unanswered[:-1]}

    @precondition(lambda self: any(call.waits for call in self.calls))
    @rule(data=st.data())
    def give_up(self, data):
        call = data.draw(st.sampled_from([call for call in self.calls if call.waits]))

        async def cancel():
            call.scope.cancel()

        self.do(cancel)

    @rule(stranger=STRANGERS, manner=MANNERS)
    def answer_what_nobody_asked(self, stranger, manner):
        self.do(self.send, encode(stranger), manner)
        self.torn = False

    @rule(
        noise=st.sampled_from(
            [b"{}\n", b"\xfe\xfd\n", b"{\n", b"[[[\n", b'{"error":{"class":"C","desc":"d"}}\n', b"{", b"\xff"]
        )
    )
    def make_noise(self, noise):
        self.do(self.send, noise)
        self.torn = noise == b"{"  # the others end the line, or are the sentinel

    @precondition(lambda self: len(self.calls) > 3 and not self.hung_up)
    @rule()
    def break_down(self):
        self.do(self.server.aclose)
        self.hung_up = True
        assert isinstance(self.client.cause, DisconnectedError)

    @invariant()
    def the_past_is_bounded(self):
        channel = self.client._channel
        assert len(channel.late_handles) <= ABANDONED_MAX
        assert len(channel._abandoned_opens) <= ABANDONED_MAX
        assert self.client._connection.pending_bytes <= LINE_MAX_BYTES

    def teardown(self):
        """At last the agent answers everything: then everybody is served, and no file that is known of stays open."""
        if self._thread.is_alive() and not self.hung_up:
            self.do(self.send, b"\n")
            self.torn = False
            self.do(self.call, self._ask)
            while self.unanswered:
                self.answer_the_oldest("whole")
            assert not any(call.waits for call in self.calls)
            assert set(self.handles) <= self.swallowed
            self.everybody_gets_their_own_answer()
        super().teardown()


TestMonitor = MonitorMachine.TestCase
TestAgent = AgentMachine.TestCase
TestMonitor.settings = TestAgent.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
