"""One table of behaviours, held by our monitor client and by qemu.qmp's, against the fake QEMU and a real one.

The real one keeps the fake honest; qemu.qmp's client, run under trio-asyncio, keeps ours honest.
"""

import shutil
import sys
import warnings
from contextlib import asynccontextmanager

import pytest
import trio

from qmpalloc.control.inspection import ask_facts, choose_actuator
from qmpalloc.errors import NonsenseError, RefusedError, UnreachableError
from qmpalloc.qmp import find_actuators, open_agent, open_monitor
from qmpalloc.qmp.monitor_types import STAT_KEYS
from qmpalloc.testing import FakeQemu, FakeVirtioMem
from qmpalloc.units import MIB, Grid

QEMU = shutil.which("qemu-system-x86_64")
STATS_OF_9_2 = {
    "stat-oom-kills", "stat-alloc-stalls", "stat-async-scans", "stat-direct-scans", "stat-async-reclaims",
    "stat-direct-reclaims",
}  # fmt: skip


class OurClient:
    """Our monitor."""

    @staticmethod
    @asynccontextmanager
    async def connected(path):
        async with open_monitor(path, timeout_s=10) as monitor:
            with monitor.subscribe() as events:
                yield OurClient(monitor, events)

    def __init__(self, monitor, events):
        self._monitor = monitor
        self._events = events

    async def execute(self, command, arguments=None):
        """Return the result, or the error class of a refusal."""
        try:
            return await self._monitor.execute(command, arguments)
        except RefusedError as error:
            return error.error_class

    async def event(self):
        return (await self._events.receive()).name


class Oracle:
    """qemu.qmp's own client."""

    @staticmethod
    @asynccontextmanager
    async def connected(path):
        if sys.version_info >= (3, 14):
            pytest.skip("trio-asyncio cannot be imported on 3.14 (trio-asyncio issues 152, 160)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import trio_asyncio
        from qemu.qmp import QMPClient

        async with trio_asyncio.open_loop():
            client = QMPClient("oracle")
            with trio.fail_after(10):
                await trio_asyncio.aio_as_trio(client.connect)(path)
            try:
                yield Oracle(client)
            finally:
                with trio.move_on_after(5, shield=True):
                    await trio_asyncio.aio_as_trio(client.disconnect)()

    def __init__(self, client):
        self._client = client

    async def execute(self, command, arguments=None):
        import trio_asyncio
        from qemu.qmp import ExecuteError

        try:
            return await trio_asyncio.aio_as_trio(self._client.execute)(command, arguments)
        except ExecuteError as error:
            return error.error.error.class_

    async def event(self):
        import trio_asyncio

        return (await trio_asyncio.aio_as_trio(self._client.events.get)())["event"]


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.qemu)])
async def socket_path(request, tmp_path, nursery, start_listening):
    path = str(tmp_path / "qmp")
    if request.param == "fake":
        await nursery.start(FakeQemu(name=None, balloon_id=None).serve_path, path)
        yield path
        return
    if QEMU is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    argv = [QEMU, "-M", "none", "-nodefaults", "-display", "none", "-qmp", f"unix:{path},server=on,wait=off"]
    await start_listening(argv, path)
    yield path


@pytest.fixture(params=[OurClient, Oracle], ids=["ours", "oracle"])
def client_class(request):
    return request.param


NO_LIMITS = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
BEHAVIOURS = [
    # command, arguments, result or a check of it; a text is the error class of a refusal
    ("query-status", None, lambda result: (result["status"], result["running"]) == ("running", True)),
    ("query-name", None, {}),
    ("query-blockstats", None, []),
    ("query-memory-devices", None, []),
    ("system_wakeup", None, "GenericError"),
    ("qom-get", {"path": "/machine", "property": "confidential-guest-support"}, ""),
    ("query-balloon", None, "DeviceNotActive"),
    ("balloon", {"value": 128 << 20}, "DeviceNotActive"),
    ("balloon", {"value": 0}, "DeviceNotActive"),
    ("balloon", {"value": True}, "GenericError"),
    ("balloon", {"value": 1.5}, "GenericError"),
    ("balloon", {}, "GenericError"),
    ("qmp_capabilities", None, "CommandNotFound"),
    ("no-such-command", None, "CommandNotFound"),
    ("qom-list", {"path": "/nowhere"}, "DeviceNotFound"),
    ("qom-list", {"path": "/machine/peripheral"}, [{"name": "type", "type": "string"}]),
    ("qom-list", {"path": "/machine/peripheral-anon"}, [{"name": "type", "type": "string"}]),
    ("qom-get", {"path": "/nowhere", "property": "guest-stats"}, "DeviceNotFound"),
    ("block_set_io_throttle", {"device": "nowhere", **NO_LIMITS}, "DeviceNotFound"),
    ("block_set_io_throttle", {"device": "nowhere", **NO_LIMITS, "iops": 1.5}, "GenericError"),
    ("block_set_io_throttle", {"device": "nowhere", "iops": 1}, "GenericError"),
]


async def test_commands_and_refusals(client_class, socket_path):
    async with client_class.connected(socket_path) as client:
        for command, arguments, expected in BEHAVIOURS:
            result = await client.execute(command, arguments)
            agrees = expected(result) if callable(expected) else result == expected
            assert agrees, (command, arguments, result)


async def test_events_of_stop_and_cont(client_class, socket_path):
    async with client_class.connected(socket_path) as client:
        with trio.fail_after(10):
            assert await client.execute("stop") == {}
            assert await client.event() == "STOP"
            assert (await client.execute("query-status"))["running"] is False
            assert await client.execute("cont") == {}
            assert await client.event() == "RESUME"


async def test_a_cancelled_command_leaves_the_connection_usable(client_class, socket_path):
    async with client_class.connected(socket_path) as client:
        for _ in range(5):
            with trio.CancelScope() as scope:
                scope.cancel()
                await client.execute("query-status")
        assert (await client.execute("query-status"))["running"] is True


async def test_many_commands_at_once(client_class, socket_path):
    results = []

    async def ask(client):
        results.append(await client.execute("query-name"))

    async with client_class.connected(socket_path) as client, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask, client)
    assert results == [{}] * 50


async def test_a_second_client_hears_nothing_until_the_first_has_gone(client_class, socket_path):
    async with client_class.connected(socket_path) as client:
        with pytest.raises(UnreachableError):
            async with open_monitor(socket_path, timeout_s=0.3):
                pytest.fail("opened")
        assert await client.execute("query-name") == {}
    async with client_class.connected(socket_path) as client:
        assert await client.execute("query-name") == {}


async def test_it_is_told_from_an_agent(socket_path):
    await a_monitor_is_no_agent(socket_path)


async def a_monitor_is_no_agent(path):
    async with open_agent(path) as agent:
        for _ in range(2):
            with (
                pytest.raises(NonsenseError, match="a QMP monitor answers on this socket") as caught,
                trio.fail_after(10),
            ):
                await agent.info()
            assert "swapped" in caught.value.hint
    async with open_monitor(path, timeout_s=10) as monitor:
        assert (await monitor.query_status()).status in {"running", "prelaunch"}


async def test_quit_says_so_and_ends_the_connection(socket_path):
    async with open_monitor(socket_path, timeout_s=10) as monitor:
        with monitor.subscribe() as events, trio.fail_after(10):
            await monitor.execute("quit")
            assert [event.name async for event in events] == ["SHUTDOWN"]
            assert monitor.closed.is_set()


@pytest.fixture
async def pretty_path(tmp_path, start_listening):
    if QEMU is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    path = str(tmp_path / "qmp")
    argv = [
        *(QEMU, "-S", "-M", "q35", "-m", "256", "-nodefaults", "-display", "none", "-name", "web"),
        *("-device", "virtio-balloon-pci", "-chardev", f"socket,id=pretty,path={path},server=on,wait=off"),
        *("-mon", "chardev=pretty,mode=control,pretty=on"),
    ]
    await start_listening(argv, path)
    return path


@pytest.mark.qemu
async def test_a_monitor_that_writes_for_people(pretty_path):
    await a_monitor_is_no_agent(pretty_path)
    async with open_monitor(pretty_path, timeout_s=10) as monitor:
        assert await monitor.query_balloon() == 256 << 20
        assert await monitor.find_balloon() == "/machine/peripheral-anon/device[0]"
        with pytest.raises(RefusedError) as caught:
            await monitor.execute("no-such-command")
        assert caught.value.error_class == "CommandNotFound"
        schema = await monitor.execute("query-qmp-schema")  # some 20,000 lines, with texts of all kinds
        assert len(schema) > 500
        with monitor.subscribe() as events, trio.fail_after(10):
            await monitor.execute("system_reset")
            assert (await events.receive()).name == "RESET"
            assert (await monitor.query_status()).status == "prelaunch"


@pytest.mark.qemu
async def test_a_machine_that_is_not_made_yet(tmp_path, start_listening):
    if QEMU is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    path = str(tmp_path / "qmp")
    argv = [QEMU, "--preconfig", "-S", "-M", "q35", "-m", "256", "-nodefaults", "-display", "none"]
    argv += ["-device", "virtio-balloon-pci", "-qmp", f"unix:{path},server=on,wait=off"]
    await start_listening(argv, path)
    async with open_monitor(path, timeout_s=10) as monitor:
        with pytest.raises(RefusedError) as caught:
            await choose_actuator(monitor)
        assert "x-exit-preconfig" in caught.value.hint
        await monitor.execute("x-exit-preconfig")
        assert (await ask_facts(await choose_actuator(monitor))).ram_bytes == 256 << 20


@pytest.mark.qemu
async def test_an_event_before_the_greeting(tmp_path, start_listening):
    """While a machine is reset without end, one client in some hundred hears of it before it is greeted."""
    if QEMU is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    path, other = str(tmp_path / "qmp"), str(tmp_path / "other")
    argv = [QEMU, "-S", "-M", "q35", "-m", "64", "-nodefaults", "-display", "none"]
    argv += ["-qmp", f"unix:{path},server=on,wait=off", "-qmp", f"unix:{other},server=on,wait=off"]
    await start_listening(argv, path)

    async def reset(monitor):
        while True:
            await monitor.execute("system_reset")

    async with open_monitor(other, timeout_s=10) as resetting, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(reset, resetting)
        with trio.fail_after(120):
            heard = 0
            while not heard:
                async with open_monitor(path, timeout_s=10) as monitor:
                    heard = monitor.unexpected
                    assert (await monitor.query_status()).status == "prelaunch"
        nursery.cancel_scope.cancel()


@pytest.fixture(params=["balloon0", ""], ids=["with id", "anonymous"])
def balloon_id(request):
    return request.param


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.qemu)])
async def ballooned_path(request, tmp_path, nursery, start_listening, balloon_id):
    """A stopped machine of 256 MiB with a balloon, in which no guest runs."""
    path = str(tmp_path / "qmp")
    if request.param == "fake":
        fake = FakeQemu(name="web", memory_bytes=256 << 20, balloon_id=balloon_id)
        fake.stop()
        fake.status = "prelaunch"
        await nursery.start(fake.serve_path, path)
        yield path
        return
    if QEMU is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    device = "virtio-balloon-pci" + (f",id={balloon_id}" if balloon_id else "")
    argv = [
        *(QEMU, "-S", "-M", "q35", "-m", "256", "-nodefaults", "-display", "none", "-name", "web"),
        *("-device", device, "-qmp", f"unix:{path},server=on,wait=off"),
    ]
    await start_listening(argv, path)
    yield path


async def test_typed_commands_of_a_machine_with_a_balloon(ballooned_path, balloon_id):
    expected = f"/machine/peripheral/{balloon_id}" if balloon_id else "/machine/peripheral-anon/device[0]"
    async with open_monitor(ballooned_path, timeout_s=10) as monitor:
        assert (await monitor.query_status()).status == "prelaunch"
        assert await monitor.find_balloon() == expected
        assert await monitor.query_balloon() == 256 << 20
        # Accepted, and nothing happens: the machine is stopped.
        await monitor.balloon(128 << 20)
        assert await monitor.query_balloon() == 256 << 20
        for refused in (0, -4096):
            with pytest.raises(RefusedError):
                await monitor.balloon(refused)
        await monitor.set_stats_interval(expected, 1)
        with pytest.raises(RefusedError):
            await monitor.set_stats_interval(expected, -1)
        asked = {"path": expected, "property": "guest-stats-polling-interval"}
        assert await monitor.execute("qom-get", asked) == 1
        for command in ("qom-get", "qom-set"):
            with pytest.raises(RefusedError) as caught:
                await monitor.execute(command, {"path": expected, "property": "nothing", "value": 1})
            assert caught.value.error_class == "GenericError"
        with pytest.raises(RefusedError):
            await monitor.execute("qom-set", asked | {"value": "1"})
        with monitor.subscribe() as events:
            await monitor.execute("system_reset")
            with trio.fail_after(10):
                assert (await events.receive()).name == "RESET"
        stats = await monitor.balloon_stats(expected)
        assert stats.last_update is None
        assert stats.oom_kills is None
        assert await monitor.block_stats() == ()


@pytest.mark.qemu
@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
async def test_the_balloons_statistics_have_the_names_that_we_read(tmp_path, start_listening):
    path = str(tmp_path / "qmp")
    argv = [QEMU, "-S", "-M", "q35", "-m", "64", "-nodefaults", "-display", "none", "-device", "virtio-balloon-pci"]
    await start_listening([*argv, "-qmp", f"unix:{path},server=on,wait=off"], path)
    async with open_monitor(path, timeout_s=10) as monitor:
        asked = {"path": await monitor.find_balloon(), "property": "guest-stats"}
        reply = await monitor.execute("qom-get", asked)
        newer = STATS_OF_9_2 if monitor.qemu_version < (9, 2) else set()
    assert set(STAT_KEYS.values()) - newer <= set(reply["stats"])


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.qemu)])
async def plugging_path(request, tmp_path, nursery, start_listening):
    """A stopped machine of 256 MiB, and virtio-mem for 512 MiB more of which 64 are asked for; no guest runs."""
    path = str(tmp_path / "qmp")
    if request.param == "fake":
        fake = FakeQemu(name="web", virtio_mem=FakeVirtioMem(256 * MIB, 512 * MIB))
        fake.stop()
        fake.status = "prelaunch"
        fake.virtio_mem.request((256 + 64) * MIB)
        await nursery.start(fake.serve_path, path)
        yield path
        return
    if QEMU is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    argv = [
        *(QEMU, "-S", "-M", "q35", "-m", "256,maxmem=1G", "-nodefaults", "-display", "none", "-name", "web"),
        *("-object", "memory-backend-ram,id=plugged,size=512M,reserve=off"),
        *("-device", "virtio-mem-pci,id=vm0,memdev=plugged,requested-size=64M"),
        *("-qmp", f"unix:{path},server=on,wait=off"),
    ]
    await start_listening(argv, path)
    yield path


VIRTIO_MEM = "/machine/peripheral/vm0"
REFUSED_SIZES = [
    (3 << 20, "'requested-size' has to be multiples of 'block-size' (0x200000)"),
    (1 << 30, "'requested-size' cannot exceed the memory backend size(0x20000000)"),
    ("64M", "Parameter 'requested-size' expects uint64"),
]


async def test_what_a_virtio_mem_device_tells_and_takes(plugging_path):
    async with open_monitor(plugging_path, timeout_s=10) as monitor:
        [listed] = await monitor.execute("query-memory-devices")
        expected = {
            "id": "vm0", "memaddr": 1 << 32, "node": 0, "memdev": "/objects/plugged", "size": 0,
            "requested-size": 64 * MIB, "max-size": 512 * MIB, "block-size": 2 * MIB,
        }  # fmt: skip
        assert listed == {"type": "virtio-mem", "data": expected}
        assert await monitor.execute("query-memory-size-summary") == {
            "base-memory": 256 * MIB, "plugged-memory": 0,
        }  # fmt: skip
        for value, text in REFUSED_SIZES:
            with pytest.raises(RefusedError) as caught:
                await monitor.execute("qom-set", {"path": VIRTIO_MEM, "property": "requested-size", "value": value})
            assert text in caught.value.message
            assert caught.value.error_class == "GenericError"
        with pytest.raises(RefusedError, match=r"'virtio-mem\.size' is not writable"):
            await monitor.execute("qom-set", {"path": VIRTIO_MEM, "property": "size", "value": 64 * MIB})
        asked = {"path": VIRTIO_MEM, "property": "requested-size"}
        assert await monitor.execute("qom-get", asked) == 64 * MIB
        assert await monitor.execute("qom-set", asked | {"value": 128 * MIB}) == {}
        assert await monitor.execute("qom-get", asked) == 128 * MIB
        with monitor.subscribe() as events:
            await monitor.execute("system_reset")
            with trio.fail_after(10):
                assert (await events.receive()).name == "RESET"
        assert await monitor.execute("qom-get", asked) == 128 * MIB  # survives, as a balloon's target does


async def test_virtio_mem_as_an_actuator(plugging_path):
    async with open_monitor(plugging_path, timeout_s=10) as monitor:
        [actuator] = await find_actuators(monitor)
        assert (actuator.kind, actuator.path) == ("virtio-mem", VIRTIO_MEM)
        memory = await actuator.memory()
        assert (memory.ram_bytes, memory.outside_bytes, memory.grid) == (768 * MIB, 0, Grid(256 * MIB, 2 * MIB))
        assert await actuator.size_bytes() == 256 * MIB
        await actuator.order(512 * MIB)  # noted, and nothing happens: the machine is stopped
        assert await actuator.size_bytes() == 256 * MIB
        with pytest.raises(RefusedError) as caught:
            await actuator.order(1024 * MIB)
        assert "512 MiB" in caught.value.hint
