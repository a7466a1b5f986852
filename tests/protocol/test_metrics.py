"""Metrics of a run, scraped: whoever asks, and however, control goes on as if nobody did."""

import stat

import pytest
import trio
from msgspec.structs import replace

pytest.importorskip("prometheus_client")

from qmpalloc.cli.conduct import beside
from qmpalloc.control.controller import Controller
from qmpalloc.errors import ConfigError, HostError
from qmpalloc.events import Decided, Faulted, Reloaded
from qmpalloc.metrics import exporter as exporting
from qmpalloc.metrics.exporter import Exporter, check_file, listen
from qmpalloc.policy import load
from qmpalloc.status.feed import Feed


@pytest.fixture(autouse=True)
def no_threads(monkeypatch):
    """A clock that jumps does not wait for threads."""

    async def here(function, *arguments):
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", here)


class Scraped:
    """A run whose metrics are served on a port of loopback."""

    def __init__(self, port, controller, exporter):
        self.port = port
        self.controller = controller
        self.exporter = exporter

    async def connect(self):
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def ask(self, request=b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
        async with await self.connect() as stream:
            await stream.send_all(request)
            return b"".join([part async for part in stream])


@pytest.fixture
async def scraped(lab, nursery):
    """A run of policy ``paper`` in control."""
    await lab.two()
    feed, loaded = Feed(), lab.config("paper")
    controller = Controller(loaded, load("paper", loaded.policy_settings), lab.events.append, feed)
    exporter = Exporter(feed, controller.tell)
    (listener,) = await listen("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]
    nursery.start_soon(beside, controller, "metrics", "no metrics are served any more", exporter.serve, [listener])
    nursery.start_soon(controller.run)
    await trio.sleep(20)
    return Scraped(port, controller, exporter)


async def test_a_scrape_tells_the_run(lab, scraped, autojump_clock):
    head, _, body = (await scraped.ask()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"text/plain; version=" in head
    assert b'qmpalloc_guest_cap_bytes{guest="small"}' in body
    decisions = len(lab.of(Decided))
    assert f"qmpalloc_decisions_total {decisions:.1f}\n".encode() in body


async def test_a_text_is_made_once_a_second_whoever_asks(scraped, autojump_clock, monkeypatch):
    made = []
    families = exporting.families
    monkeypatch.setattr(exporting, "families", lambda now: made.append(1) or families(now))
    replies = []

    async def ask():
        replies.append(await scraped.ask())

    async with trio.open_nursery() as nursery:
        for _ in range(exporting.CLIENTS_MAX):
            nursery.start_soon(ask)
    assert len(set(replies)) == 1
    assert len(made) == 1
    await trio.sleep(exporting.FRESH_S)
    assert await scraped.ask() != replies[0]


async def test_control_has_its_turn_while_a_text_is_made(scraped, autojump_clock):
    turns = 0

    async def control():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(control)
        text = await scraped.exporter.text()
        nursery.cancel_scope.cancel()
    assert turns >= text.count(b"# TYPE") - 1  # who runs first in the last turn is drawn by lot


async def test_a_scrape_in_mid_reload_is_of_one_moment_and_the_next_of_the_new_guests(
    lab, scraped, autojump_clock, monkeypatch
):
    controller, made, parts = scraped.controller, exporting.generate_latest, []

    def reloaded_meanwhile(registry):
        parts.append(registry)
        if len(parts) == 3:
            small, large = controller.config.guests
            controller.reload(lambda: replace(controller.config, guests=(replace(small, name="tiny"), large)))
        return made(registry)

    monkeypatch.setattr(exporting, "generate_latest", reloaded_meanwhile)
    await trio.sleep(exporting.FRESH_S)
    before = await scraped.ask()
    assert lab.of(Reloaded)[0].renamed == {"small": "tiny"}
    await trio.sleep(exporting.FRESH_S)
    after = await scraped.ask()
    assert before.count(b'guest="small"') >= before.count(b'guest="large"') > 0
    assert b'guest="tiny"' not in before
    assert b'guest="tiny"' in after
    assert b'guest="small"' not in after
    await trio.sleep(10)
    gaps = [b.t - a.t for a, b in zip(lab.of(Decided), lab.of(Decided)[1:], strict=False)]
    assert max(gaps) <= 2.01


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET / HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /metrics?name[]=x HTTP/1.1\r\n\r\n", b"200"),
        (b"\0\xff\r\n\r\n", b"405"),
    ],
)
async def test_other_requests(scraped, autojump_clock, request_, status):
    assert (await scraped.ask(request_)).split(b" ", 2)[1] == status


async def test_clients_that_say_nothing_or_read_nothing_are_dropped_and_control_goes_on(lab, scraped, autojump_clock):
    before = len(lab.of(Decided))
    streams = [await scraped.connect() for _ in range(3 * exporting.CLIENTS_MAX)]
    for stream in streams[::2]:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\n")
    await streams[1].send_all(b"x" * 20_000)
    await trio.sleep(exporting.CLIENT_S + 10)
    assert b"200 OK" in await scraped.ask()
    assert len(lab.of(Decided)) > before
    assert not lab.of(Faulted)
    for stream in streams:
        await stream.aclose()


async def test_a_port_in_use_is_told_with_what_to_do(scraped, autojump_clock):
    with pytest.raises(HostError, match=f"127.0.0.1:{scraped.port}") as caught:
        await listen("127.0.0.1", scraped.port)
    assert "another port" in caught.value.hint


async def test_an_address_of_another_host(autojump_clock):
    with pytest.raises(HostError, match=r"192\.0\.2\.1"):
        await listen("192.0.2.1", 9177)


async def test_a_file_is_kept_and_removed_in_the_end(scraped, autojump_clock, tmp_path):
    path = tmp_path / "q.prom"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scraped.exporter.keep_file, path)
        await trio.sleep(1)
        first = path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        await trio.sleep(2 * exporting.FILE_S)
        assert path.read_text() != first
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_a_file_that_cannot_be_written_is_told_once(lab, scraped, autojump_clock, tmp_path):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scraped.exporter.keep_file, tmp_path / "gone" / "q.prom")
        await trio.sleep(4 * exporting.FILE_S)
        nursery.cancel_scope.cancel()
    (fault,) = lab.of(Faulted)
    assert "gone/q.prom cannot be written" in fault.message


def test_a_place_for_a_file_is_checked_first(tmp_path):
    check_file(tmp_path / "q.prom")
    with pytest.raises(ConfigError, match=r"NAME\.prom"):
        check_file(tmp_path / "q.txt")
    with pytest.raises(ConfigError, match="no directory"):
        check_file(tmp_path / "gone" / "q.prom")


async def test_a_defect_of_ours_ends_service_and_file_and_not_the_run(
    lab, scraped, autojump_clock, monkeypatch, tmp_path
):
    def broken(registry):
        raise ZeroDivisionError

    monkeypatch.setattr(exporting, "generate_latest", broken)
    await trio.sleep(exporting.FRESH_S)
    assert await scraped.ask() == b""
    await trio.sleep(1)
    await beside(scraped.controller, "metrics", "no file", scraped.exporter.keep_file, tmp_path / "q.prom")
    served, written = lab.of(Faulted)
    assert "no metrics are served any more" in served.message
    assert written.message == "no file: ZeroDivisionError()"
    before = len(lab.of(Decided))
    await trio.sleep(20)
    assert len(lab.of(Decided)) > before
