"""A fake QEMU: a QMP server with a balloon or a virtio-mem device, events, guest statistics and block statistics.

Behaviours are those of QEMU 7.2 as observed; ``tests/contract`` holds the fake against a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import trio

from qmpalloc.qmp.framing import encode
from qmpalloc.testing.balloon import FakeBalloon, FakeVirtioMem
from qmpalloc.testing.faults import PeerDied, Wire
from qmpalloc.testing.peer import Command, FakePeer, Refusal
from qmpalloc.testing.requests import RequestSplitter
from qmpalloc.testing.serving import serve_unix

UNKNOWN_STAT = 2**64 - 1
STATS = (
    "stat-swap-in", "stat-swap-out", "stat-major-faults", "stat-minor-faults", "stat-free-memory",
    "stat-total-memory", "stat-available-memory", "stat-disk-caches", "stat-htlb-pgalloc", "stat-htlb-pgfail",
)  # fmt: skip
EVENTS_MAX = 1000
VIRTIO_MEM_ID = "vm0"
VIRTIO_MEM_PATH = f"/machine/peripheral/{VIRTIO_MEM_ID}"
VIRTIO_MEM_ADDRESS = 1 << 32
THROTTLE_LIMITS = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
THROTTLE_MAX = 10**15


class FakeQemu(FakePeer):
    """A QMP server for one guest. Its state outlives the clients, like a real QEMU's.

    Args:
        name: As ``-name``.
        memory_bytes: As ``-m``.
        balloon_id: As ``-device virtio-balloon-pci,id=``; ``""`` for a device without id, None for no device.
        balloon: The balloon's model, to set its rates; instant by default.
        virtio_mem: The model of a virtio-mem device ``vm0``, which then is what moves memory. There is a balloon beside
            it only where its model is given, of the RAM alone.
        greet: False makes it a socket that accepts and stays silent.

    Attributes:
        actuator: The model of what moves memory.
        balloon: The model of the balloon; of what moves memory where there is none.
        on_order: Called with each size that a client asks for, before it is taken.
        on_query: Called when a client asks for the size.
        status: As ``query-status`` reports it.
        version: As in the greeting.
        migration: Status of a migration as ``query-migrate`` reports it; empty when there never was one.
        stats: ``guest-stats``; set ``stat-…`` members, and ``last_update`` beside it, to have the guest report.
        blocks: What ``query-blockstats`` returns.
        throttles: Device to its limit in requests per second; without those that have none.
        memory_devices: What ``query-memory-devices`` returns, by id; see `plug`.
        machine: Properties of ``/machine``.
        properties: Switches of the balloon device, as ``-device virtio-balloon-pci,NAME=on`` sets them.
    """

    def __init__(
        self,
        *,
        name: str | None = "guest",
        memory_bytes: int = 1 << 30,
        balloon_id: str | None = "balloon0",
        balloon: FakeBalloon | None = None,
        virtio_mem: FakeVirtioMem | None = None,
        greet: bool = True,
    ) -> None:
        super().__init__()
        self.name = name
        self.virtio_mem = virtio_mem
        self.balloon_id = balloon_id if virtio_mem is None or balloon is not None else None
        self.balloon = balloon or virtio_mem or FakeBalloon(memory_bytes)
        self.actuator = virtio_mem or self.balloon
        self.on_order: Callable[[int], None] = _ignore
        self.on_query: Callable[[], None] = _ignore
        self.greet = greet
        self.status = "running"
        self.migration = ""
        self.version = (7, 2, 22)
        self.stats: dict[str, int] = dict.fromkeys(STATS, UNKNOWN_STAT)
        self.stats_interval_s = 0
        self.last_update = 0
        self.blocks: list[dict[str, Any]] = []
        self.throttles: dict[str, int] = {}
        self.properties = {"deflate-on-oom": True, "free-page-reporting": True}
        self.memory_devices: dict[str, dict[str, Any]] = {}
        self.machine: dict[str, object] = {"confidential-guest-support": ""}
        self.commands |= self._own_commands()
        self._negotiated = False
        self._quit = trio.Event()
        self._events: trio.MemorySendChannel[bytes] | None = None

    @property
    def has_quit(self) -> bool:
        """True once this QEMU has ended."""
        return self._quit.is_set()

    @property
    def virtio_mem_bytes(self) -> int:
        """Memory that virtio-mem has plugged beside what moves the guest's memory."""
        devices = [*self.memory_devices.values()]
        return sum(int(device["data"]["size"]) for device in devices if device["type"] == "virtio-mem")

    async def serve_path(self, path: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on a Unix socket and serve one client after the other, until cancelled or told to quit."""
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_unix, path, self.serve))
            task_status.started()
            await self._quit.wait()
            async with self._one_client:  # the last client has heard the last event
                nursery.cancel_scope.cancel()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one client to its end. A second one is kept waiting, without a greeting, until the first has gone."""
        async with self._one_client, stream:
            if self._quit.is_set():
                return
            self._negotiated = False
            events, to_send = trio.open_memory_channel[bytes](EVENTS_MAX)
            wire = Wire(stream, self.faults)
            async with trio.open_nursery() as nursery:
                self._events = events
                nursery.start_soon(self._run_events, wire, to_send, nursery.cancel_scope)
                nursery.start_soon(self.actuator.run_changes, self._report_size)
                try:
                    await self._converse(stream, wire)
                except PeerDied:
                    pass
                finally:
                    self._events = None
                nursery.cancel_scope.cancel()

    def emit(self, event: str, data: Mapping[str, object] | None = None) -> None:
        """Send an event to the client, if one is past its handshake. Events before that are lost, as with QEMU."""
        if self._events is None or not self._negotiated:
            return
        seconds = trio.current_time()
        stamp = {"seconds": int(seconds), "microseconds": int(seconds % 1 * 1e6)}
        message: dict[str, object] = {"timestamp": stamp, "event": event}
        if data is not None:
            message["data"] = dict(data)
        self._events.send_nowait(encode(message))

    def stop(self) -> None:
        """Stop the virtual CPUs: the balloon does not move, ``STOP`` is sent."""
        self.status = "paused"
        self.actuator.paused = True
        self.emit("STOP")

    def resume(self) -> None:
        """Let the virtual CPUs run again."""
        self.status = "running"
        self.actuator.paused = False
        self.emit("RESUME")

    def suspend(self) -> None:
        """Let the guest fall asleep (ACPI S3): ``SUSPEND`` is sent, and no ``STOP``.

        A driver empties its balloon before; see `FakeBalloon.take_back`.
        """
        self.status = "suspended"
        self.actuator.paused = True
        self.emit("SUSPEND")

    def wake(self) -> None:
        """Wake the guest: ``WAKEUP`` is sent, and no ``RESUME``. Its driver then moves to the balloon's target."""
        self.status = "running"
        self.actuator.paused = False
        self.actuator.request(self.actuator.target_bytes)
        self.emit("WAKEUP")

    def plug(self, name: str, kind: str, size_bytes: int, **data: object) -> None:
        """Plug memory, or give a device that is there another size. No event tells of it.

        Args:
            name: Id of the device.
            kind: ``dimm``, ``nvdimm``, ``virtio-mem``, ``virtio-pmem``; only a DIMM adds to the balloon's RAM.
            size_bytes: Its size.
            data: What else ``query-memory-devices`` tells of it, for example ``requested-size``.
        """
        self.unplug(name)
        self.memory_devices[name] = {"type": kind, "data": {"id": name, "size": size_bytes} | data}
        if kind == "dimm":
            self.actuator.plug(size_bytes)

    def unplug(self, name: str) -> None:
        """Unplug memory, if it is there."""
        device = self.memory_devices.pop(name, None)
        if device is not None and device["type"] == "dimm":
            self.actuator.plug(-device["data"]["size"])

    def reset(self) -> None:
        """Reboot the guest. Target and told size survive, as with QEMU; see `FakeBalloon.reset`."""
        self.actuator.reset()
        self.emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"})

    def shut_down(self) -> None:
        """Have the guest power off: ``SHUTDOWN`` is sent, QEMU ends and its socket goes."""
        self._end({"guest": True, "reason": "guest-shutdown"})

    async def _converse(self, stream: trio.abc.Stream, wire: Wire) -> None:
        version = {"qemu": dict(zip(("major", "minor", "micro"), self.version, strict=True)), "package": "fake"}
        if self.greet:
            await wire.send(encode({"QMP": {"version": version, "capabilities": ["oob"]}}))
        splitter = RequestSplitter()
        while True:
            try:
                data = await stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                return
            for frame in splitter.feed(data):
                if not self.greet:
                    continue
                command, body = self._reply(frame)
                await wire.answer(command, body)
                if command == "quit":
                    self._end({"guest": False, "reason": "host-qmp-quit"})

    def _check(self, command: str) -> None:
        if (command == "qmp_capabilities") == self._negotiated:
            done = "Capabilities negotiation is already complete, command ignored"
            wanted = "Expecting capabilities negotiation with 'qmp_capabilities'"
            raise Refusal(done if self._negotiated else wanted, "CommandNotFound")

    def _own_commands(self) -> dict[str, Command]:
        return {
            "qmp_capabilities": self._qmp_capabilities,
            "query-status": lambda _: {"status": self.status, "singlestep": False, "running": self.status == "running"},
            "query-name": lambda _: {} if self.name is None else {"name": self.name},
            "query-kvm": lambda _: {"enabled": False, "present": False},
            "query-memory-size-summary": self._query_memory_size_summary,
            "query-memory-devices": self._query_memory_devices,
            "query-memdev": lambda _: [],
            "query-block": lambda _: [],
            "query-named-block-nodes": lambda _: [],
            "query-balloon": self._query_balloon,
            "balloon": self._balloon,
            "qom-list": self._qom_list,
            "qom-get": self._qom_get,
            "qom-set": self._qom_set,
            "query-migrate": lambda _: {"status": self.migration} if self.migration else {},
            "query-blockstats": lambda _: self.blocks,
            "block_set_io_throttle": self._block_set_io_throttle,
            "stop": lambda _: _nothing(self.stop),
            "cont": lambda _: _nothing(self.resume),
            "system_reset": lambda _: _nothing(self.reset),
            "system_wakeup": self._system_wakeup,
            "quit": lambda _: {},
        }

    def _query_memory_size_summary(self, _: dict[str, Any]) -> object:
        sizes = [(device["type"], device["data"]["size"]) for device in self._devices()]
        device = self.virtio_mem
        ram_bytes = device.grid.start_bytes if device is not None else self.balloon.memory_bytes
        base_bytes = ram_bytes - sum(size for kind, size in sizes if kind == "dimm")
        return {"base-memory": base_bytes, "plugged-memory": sum(size for _, size in sizes)}

    def _query_memory_devices(self, _: dict[str, Any]) -> object:
        if self.virtio_mem is not None:
            self.on_query()
        return self._devices()

    def _devices(self) -> list[dict[str, Any]]:
        device = self.virtio_mem
        if device is None:
            return [*self.memory_devices.values()]
        data = {
            "id": VIRTIO_MEM_ID,
            "memaddr": VIRTIO_MEM_ADDRESS,
            "node": 0,
            "memdev": "/objects/plugged",
            "size": device.plugged_bytes,
            "requested-size": device.requested_bytes,
            "max-size": device.most_bytes,
            "block-size": device.grid.unit_bytes,
        }
        return [{"type": "virtio-mem", "data": data}, *self.memory_devices.values()]

    def _system_wakeup(self, _: dict[str, Any]) -> object:
        if self.status != "suspended":
            raise Refusal("Unable to wake up: guest is not in suspended state")
        return _nothing(self.wake)

    def _qmp_capabilities(self, _: dict[str, Any]) -> object:
        self._negotiated = True
        return {}

    def _query_balloon(self, _: dict[str, Any]) -> object:
        self._require_balloon()
        self.on_query()
        return {"actual": self.balloon.told_bytes}

    def _balloon(self, arguments: dict[str, Any]) -> object:
        if "value" not in arguments:
            raise Refusal("Parameter 'value' is missing")
        value = arguments["value"]
        if type(value) is not int:
            raise Refusal("Invalid parameter type for 'value', expected: integer")
        self._require_balloon()
        if value <= 0:
            raise Refusal("Parameter 'target' expects a size")
        self.on_order(value)
        self.balloon.request(value)
        return {}

    def _qom_list(self, arguments: dict[str, Any]) -> object:
        containers = {"/machine/peripheral": bool(self.balloon_id), "/machine/peripheral-anon": self.balloon_id == ""}
        path = arguments.get("path")
        if path not in containers:
            raise Refusal(f"Device '{path}' not found", "DeviceNotFound")
        listing = [{"name": "type", "type": "string"}]
        if containers[path]:
            listing.append({"name": self.balloon_id or "device[0]", "type": "child<virtio-balloon-pci>"})
        if self.virtio_mem is not None and path == "/machine/peripheral":
            listing.append({"name": VIRTIO_MEM_ID, "type": "child<virtio-mem-pci>"})
        return listing

    def _qom_get(self, arguments: dict[str, Any]) -> object:
        if arguments.get("path") == "/machine" and arguments.get("property") in self.machine:
            return self.machine[str(arguments["property"])]
        if self.virtio_mem is not None and arguments.get("path") == VIRTIO_MEM_PATH:
            return self._get_of_virtio_mem(self.virtio_mem, arguments.get("property"))
        self._require_path(arguments)
        if arguments.get("property") == "guest-stats":
            return {"stats": self.stats, "last-update": self.last_update}
        if arguments.get("property") == "guest-stats-polling-interval":
            return self.stats_interval_s
        if arguments.get("property") in self.properties:
            return self.properties[str(arguments["property"])]
        raise Refusal(f"Property 'virtio-balloon-pci.{arguments.get('property')}' not found")

    def _get_of_virtio_mem(self, device: FakeVirtioMem, name: object) -> object:
        properties = {
            "memaddr": VIRTIO_MEM_ADDRESS,
            "size": device.plugged_bytes,
            "requested-size": device.requested_bytes,
            "block-size": device.grid.unit_bytes,
        }
        if name not in properties:
            raise Refusal(f"Property 'virtio-mem-pci.{name}' not found")
        return properties[str(name)]

    def _set_of_virtio_mem(self, device: FakeVirtioMem, name: object, value: object) -> object:
        if name != "requested-size":
            raise Refusal(f"Property 'virtio-mem.{name}' is not writable")
        if type(value) is not int:
            raise Refusal("Parameter 'requested-size' expects uint64")
        if value % device.grid.unit_bytes:
            raise Refusal(f"'requested-size' has to be multiples of 'block-size' ({device.grid.unit_bytes:#x})")
        if not 0 <= value <= device.most_bytes:
            raise Refusal(f"'requested-size' cannot exceed the memory backend size({device.most_bytes:#x})")
        self.on_order(device.grid.start_bytes + value)
        device.request(device.grid.start_bytes + value)
        return {}

    def _qom_set(self, arguments: dict[str, Any]) -> object:
        if self.virtio_mem is not None and arguments.get("path") == VIRTIO_MEM_PATH:
            return self._set_of_virtio_mem(self.virtio_mem, arguments.get("property"), arguments.get("value"))
        self._require_path(arguments)
        value = arguments.get("value")
        if arguments.get("property") != "guest-stats-polling-interval":
            raise Refusal(f"Property 'virtio-balloon-pci.{arguments.get('property')}' not found")
        if type(value) is not int or value < 0:
            raise Refusal("timer value must be greater than zero")
        self.stats_interval_s = value
        return {}

    def _block_set_io_throttle(self, arguments: dict[str, Any]) -> object:
        for name in THROTTLE_LIMITS:
            if name not in arguments:
                raise Refusal(f"Parameter '{name}' is missing")
            if type(arguments[name]) is not int:
                raise Refusal(f"Invalid parameter type for '{name}', expected: integer")
        device, iops = str(arguments.get("device")), arguments["iops"]
        if device not in {block.get("device") for block in self.blocks}:
            raise Refusal(f"Device '{device}' not found", "DeviceNotFound")
        if not 0 <= iops <= THROTTLE_MAX:
            raise Refusal(f"bps/iops/max values must be within [0, {THROTTLE_MAX}]")
        self.throttles.pop(device, None)
        if iops:
            self.throttles[device] = iops
        return {}

    def _require_balloon(self) -> None:
        if self.balloon_id is None:
            raise Refusal("No balloon device has been activated", "DeviceNotActive")

    def _require_path(self, arguments: dict[str, Any]) -> None:
        path = arguments.get("path")
        known = f"/machine/peripheral/{self.balloon_id}" if self.balloon_id else "/machine/peripheral-anon/device[0]"
        if self.balloon_id is None or path != known:
            raise Refusal(f"Device '{path}' not found", "DeviceNotFound")

    def _end(self, reason: dict[str, object]) -> None:
        self.emit("SHUTDOWN", reason)
        self._quit.set()
        if self._events is not None:
            self._events.close()
            self._events = None

    def _report_size(self, actual_bytes: int) -> None:
        device = self.virtio_mem
        if device is None:
            self.emit("BALLOON_CHANGE", {"actual": actual_bytes})
        else:
            plugged_bytes = actual_bytes - device.grid.start_bytes
            place = {"id": VIRTIO_MEM_ID, "qom-path": f"{VIRTIO_MEM_PATH}/virtio-backend"}
            self.emit("MEMORY_DEVICE_SIZE_CHANGE", place | {"size": plugged_bytes})

    async def _run_events(
        self, wire: Wire, to_send: trio.MemoryReceiveChannel[bytes], conversation: trio.CancelScope
    ) -> None:
        try:
            async for line in to_send:
                await wire.send(line)
        except PeerDied:
            return  # the conversation finds out by itself
        conversation.cancel()  # QEMU has quit, and all it had to say is said


def _ignore(*_: object) -> None:
    pass


def _nothing(action: Callable[[], None]) -> object:
    action()
    return {}
