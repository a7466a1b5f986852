"""Diagnoses: what is found is said, and every line that is not well ends with what to do."""

import json
import os

import msgspec
import pytest
import trio
from click.testing import CliRunner
from msgspec import structs

from guest_agent.counters_file import Series
from qmpalloc import config as configuration
from qmpalloc.cli.doctor import doctor
from qmpalloc.doctor import Verdict, check_guest
from qmpalloc.doctor.guests import SERVICE, SERVICES, counter_checks, disks
from qmpalloc.doctor.host import check_cgroup, check_host
from qmpalloc.experiment.spec.access import Uniform
from qmpalloc.host.sockets import holders, parse_holders, who_else, who_else_may_open
from qmpalloc.qemu import accelerator
from qmpalloc.qemu.accelerator import ProbeResult
from qmpalloc.sample import CollectorUse, Counters, Duty, Sample
from qmpalloc.sim import Load, ReplayGuest
from qmpalloc.testing import FakeBalloon, FakeVirtioMem, open_simulated_guest
from qmpalloc.units import GIB, MIB

SS = """\
u_str ESTAB 0 0 web.qmp 501 * 502 users:(("qemu-system-x86",pid=10,fd=9))
u_str ESTAB 0 0 * 502 * 501 users:(("qmp-shell",pid=20,fd=3))
u_str ESTAB 0 0 /elsewhere/web.qmp 601 * 602 users:(("qemu-system-x86",pid=11,fd=9))
u_str ESTAB 0 0 * 602 * 601 users:(("python3",pid=21,fd=3))
u_str ESTAB 0 0 * 702 * 701
garbage
"""


def test_who_holds_a_socket_that_was_bound_by_a_relative_path(tmp_path):
    found = parse_holders(SS, str(tmp_path / "web.qmp"), {10: tmp_path}.get)
    assert found == ["qmp-shell (pid 20)"]


def test_who_holds_a_socket_that_was_bound_by_an_absolute_path(tmp_path):
    assert parse_holders(SS, "/elsewhere/web.qmp", {10: tmp_path}.get) == ["python3 (pid 21)"]
    assert parse_holders(SS, "/nowhere/web.qmp", {10: tmp_path}.get) == []


def test_names_that_are_no_text_hide_no_holder_and_reach_no_terminal(tmp_path, monkeypatch):
    program = tmp_path / "ss"
    program.write_bytes(
        b"#!/bin/sh\ncat <<'END'\n"
        b'u_str ESTAB 0 0 /web\xff.qmp 1 * 2 users:(("qemu",pid=1,fd=9))\n'
        b'u_str ESTAB 0 0 * 2 * 1 users:(("\x1b[2Jgr\xc3",pid=2,fd=3))\nEND\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert holders("/web\udcff.qmp") == ["?[2Jgr\\udcc3 (pid 2)"]


OVERLAY = {"file": 'json:{"driver": "qcow2"}', "cache": {"direct": False, "no-flush": True}}
"""The temporary file that QEMU 7.2 makes for snapshot=on, whatever the cache mode of the disk."""


def test_disks():
    blocks = [
        {"device": "plain", "inserted": {"file": "/a.img", "cache": {"direct": False, "no-flush": False}}},
        {"device": "", "qdev": "/machine/peripheral/disk0/virtio-backend",
         "inserted": {"file": "/b.img", "cache": {"direct": True, "no-flush": False}}},
        {"device": "data", "inserted": {**OVERLAY, "backing_file": "/data.img"}},
        {"device": "root", "inserted": {**OVERLAY, "backing_file": "/root.img"}},
        {"device": "cdrom"},
        "garbage",
    ]  # fmt: skip
    nodes = [
        {"file": "/data.img", "drv": "raw", "cache": {"direct": True}},
        {"file": "/data.img", "drv": "file", "cache": {"direct": True}},
        {"file": "/root.img", "drv": "raw", "cache": {"direct": False}},
        {"file": "/root.img", "drv": "file", "cache": {"direct": True}},
        "garbage",
    ]
    assert [(disk.name, disk.file, disk.direct, disk.thrown_away) for disk in disks(blocks, nodes)] == [
        ("plain", "/a.img", False, False),
        ("/machine/peripheral/disk0", "/b.img", True, False),
        ("data", "/data.img", True, True),
        ("root", "/root.img", False, True),
    ]
    assert list(disks(None, None)) == []


async def test_only_disks_whose_cache_can_be_mended_are_warned_of(tmp_path, autojump_clock, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, own = str(tmp_path / "cache/qmpalloc/images/trixie-lab-0/root.ext4"), str(tmp_path / "own.img")
    blocks = [
        {"device": name, "inserted": {**OVERLAY, "backing_file": file}} for name, file in (("root", root), ("own", own))
    ]
    nodes = [{"file": file, "cache": {"direct": False}} for file in (root, own)]
    async with simulated(tmp_path) as guest:
        guest.qemu.commands.update({"query-block": lambda _: blocks, "query-named-block-nodes": lambda _: nodes})
        await trio.sleep(1)
        checks = await checks_of(a_config(tmp_path))
    assert checks["disk root"].verdict is Verdict.OK
    assert "reference image" in checks["disk root"].detail
    assert checks["disk own"].verdict is Verdict.WARN
    assert "cache=none" in checks["disk own"].todo


@pytest.mark.parametrize(
    ("membership", "files", "verdict", "says"),
    [
        ("0::/user/lab", {"user/memory.max": GIB, "user/lab/memory.max": 2 * GIB}, Verdict.OK, "1G ({}/user/memory.m"),
        ("0::/user/lab", {"user/memory.high": GIB - 1, "user/memory.max": GIB}, Verdict.WARN, "({}/user/memory.high)"),
        ("3:memory:/", {"memory.limit_in_bytes": MIB}, Verdict.WARN, "may use 1M ({}/v1/memory.limit_in_bytes)"),
        (
            "3:memory:/\n0::/user",
            {"user/memory.max": MIB},
            Verdict.OK,
            "no control group limits the memory of",
        ),
        ("0::/user", {"user/memory.max": "max"}, Verdict.OK, "of this process (v2, {}/user)"),
        ("", {}, Verdict.OK, "there is none"),
        ("0::/../other", {}, Verdict.WARN, "cannot be looked up: the control group /../other (v2): no mount shows it"),
        (
            "0::/user",
            {"user/memory.max": "", "memory.max": GIB},
            Verdict.WARN,
            "may use 1G ({}/memory.max); others",
        ),
    ],
)
def test_what_limits_the_memory_of_this_process_is_found_or_it_is_told_that_nobody_could_look(
    tmp_path, membership, files, verdict, says
):
    mounts = f"1 0 0:1 / {tmp_path} rw - cgroup2 cgroup2 rw\n2 0 0:2 / {tmp_path}/v1 rw - cgroup cgroup rw,memory\n"
    for name, text in {"self/cgroup": membership, "self/mountinfo": mounts}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, value in files.items():
        file = tmp_path / ("v1" if "limit_in_bytes" in name else "") / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(f"{value}\n")
    found = check_cgroup(a_config(tmp_path), tmp_path)
    assert found.verdict is verdict
    assert says.format(tmp_path) in found.detail
    assert bool(found.todo) == (verdict is Verdict.WARN)


def a_config(directory, budget="1GiB"):
    text = f'[host]\nbudget = "{budget}"\n[control]\ncommand_timeout = "500ms"\n'
    text += '[[guest]]\nname = "web"\nmonitor = "web.qmp"\nagent = "web.agent"\n'
    text += 'floor = "256MiB"\ncap = "800MiB"\nbaseline = "512MiB"\n'
    return configuration.parse(text, file=directory / "lab.toml")


def test_a_budget_above_the_hosts_memory_fails(tmp_path):
    memory = next(check for check in check_host(a_config(tmp_path, "500TiB")) if check.name == "memory")
    assert memory.verdict is Verdict.FAIL
    assert "lower [host] budget" in memory.todo


COUNTED = Counters(
    accesses=1, inserts_read=1, inserts_fault=1, inserts_write=1, inserts_other=1, evictions=1, events_lost=0
)


@pytest.mark.parametrize(
    ("changes", "verdict", "says", "todo"),
    [
        ({"counters": Counters(inserts_read=1)}, Verdict.FAIL, "kernel has no usable filemap_read", "hold this guest"),
        (
            {"counters": structs.replace(COUNTED, evictions=None)},
            Verdict.WARN,
            "not counted: evictions",
            "newer kernel",
        ),
        ({"counters": structs.replace(COUNTED, events_lost=9)}, Verdict.WARN, "9 events", "preempt=voluntary"),
        ({"collector": CollectorUse(intervals_missed=3)}, Verdict.WARN, "3 were missed", "journalctl"),
        (
            {"duty": Duty(share=0.1, attached_ms=1, sampled=0, accesses_variance=0)},
            Verdict.WARN,
            "counted 10% of the time",
            "without --duty",
        ),
    ],
)
def test_absent_counts_and_losses_are_explained(changes, verdict, says, todo):
    whole = Sample(
        format="qmpalloc-counters", version=1, boot_id="0" * 36, start_id="0" * 16, sequence=1, monotonic_ns=1,
        interval_ms=1000, kernel="6.12", page_size=4096, counters=COUNTED, missing_hooks=("filemap_read",),
    )  # fmt: skip
    assert counter_checks("web", whole) == []
    (check,) = counter_checks("web", structs.replace(whole, **changes))
    assert check.verdict is verdict
    assert says in check.detail
    assert todo in check.todo


async def checks_of(config):
    return {check.name: check async for check in check_guest(config.guests[0], config.control)}


def simulated(directory):
    load = Load(file_pages=1000, accesses_per_s=100.0)
    return open_simulated_guest("web", directory, load=load, memory_bytes=GIB, interval_s=0.2)


async def test_a_guest_in_order(tmp_path, autojump_clock):
    async with simulated(tmp_path) as guest:
        guest.qemu.last_update = 1
        await trio.sleep(1)
        checks = await checks_of(a_config(tmp_path))
    assert [check for check in checks.values() if check.verdict is Verdict.FAIL] == []
    assert checks["collector"].verdict is Verdict.OK
    assert checks["balloon"].verdict is Verdict.OK
    assert checks["RAM"].verdict is Verdict.OK


@pytest.mark.parametrize(
    ("spoil", "name", "says"),
    [
        (lambda g: g.agent.stop(), "agent", "qemu-guest-agent"),
        (lambda g: setattr(g, "collecting", False), "collector", "restart"),
        (lambda g: g.agent.files.clear() or setattr(g, "collecting", False), "collector", "guest_agent"),
        (lambda g: setattr(g.agent, "frozen", True), "agent", "backup"),
        (lambda g: setattr(g.agent, "refusal", "Permission denied"), "collector", "SELinux"),
        (lambda g: setattr(g.agent, "refusal", "Too many open files"), "collector", "restart qemu-guest-agent"),
        (lambda g: setattr(g.agent, "refusal", "Appel système interrompu"), "collector", "the guest's words"),
        (lambda g: g.qemu.properties.update({"deflate-on-oom": False}), "deflate-on-oom", "deflate-on-oom=on"),
        (lambda g: setattr(g.qemu, "balloon_id", None), "balloon", "virtio-balloon-pci"),
        (lambda g: g.qemu.stop(), "state", "cont"),
        (lambda g: g.qemu.suspend(), "state", "system_wakeup"),
        (lambda g: setattr(g.qemu.balloon, "memory_bytes", 600 * MIB), "RAM", "-m 800"),
        (lambda g: g.qemu.commands.update({"query-memdev": lambda _: [{"prealloc": True}]}), "RAM backend", "plain"),
        (
            lambda g: g.qemu.commands.update({"human-monitor-command": lambda _: "n: type=vhost-vdpa"}),
            "pinned memory",
            "remove",
        ),
        (lambda g: setattr(g.qemu, "greet", False), "monitor", "-qmp"),
    ],
)
async def test_what_is_wrong_is_named_with_what_to_do(tmp_path, autojump_clock, spoil, name, says):
    async with simulated(tmp_path) as guest:
        await trio.sleep(1)
        spoil(guest)
        checks = await checks_of(a_config(tmp_path))
    assert checks[name].verdict is not Verdict.OK
    assert says in checks[name].todo
    assert all(check.todo for check in checks.values() if check.verdict is not Verdict.OK)


COMPILES = Series("0" * 16, 1000).render(None, "starting: compiling and attaching the probes")
GAVE_UP = Series("0" * 16, 1000).render(None, "bcc: no room")


@pytest.mark.parametrize(
    ("content", "processes", "verdict", "says"),
    [
        (COMPILES, b"321\n", Verdict.WARN, "starting: compiling"),
        (COMPILES, "no systemd", Verdict.WARN, "starting: compiling"),
        (COMPILES, None, Verdict.FAIL, "starting: compiling"),  # it was killed while it did
        (None, b"321\n", Verdict.WARN, "is starting"),
        (None, None, Verdict.FAIL, "No such file"),
        (None, "no systemd", Verdict.FAIL, "No such file"),
        (GAVE_UP, b"321\n", Verdict.FAIL, "bcc: no room"),
    ],
)
async def test_a_collector_that_compiles_has_not_failed(tmp_path, autojump_clock, content, processes, verdict, says):
    async with simulated(tmp_path) as guest:
        await trio.sleep(1)
        guest.collecting = False
        files = guest.agent.files
        files.clear()
        if content is not None:
            files["/run/qmpalloc/counters.json"] = content
        if processes != "no systemd":
            files[f"{SERVICES}/cgroup.procs"] = b""
        if isinstance(processes, bytes):
            files[f"{SERVICES}/{SERVICE}/cgroup.procs"] = processes
        check = (await checks_of(a_config(tmp_path)))["collector"]
    assert check.verdict is verdict
    assert says in check.detail
    assert ("wait" in check.todo) == (verdict is Verdict.WARN)


@pytest.mark.parametrize(
    ("probe", "verdict", "says"),
    [
        (None, Verdict.WARN, "whether a guest boots is not known"),
        (ProbeResult(False, "a guest under KVM hangs without a word (4 s)"), Verdict.WARN, "hangs without a word"),
        (ProbeResult(True, "a guest boots under KVM, in 1.1 s"), Verdict.OK, "a guest boots under KVM"),
    ],
)
def test_kvm_is_well_only_when_a_guest_has_booted(tmp_path, monkeypatch, probe, verdict, says):
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accelerator, "KVM_DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(accelerator, "known", lambda: probe)
    check = next(check for check in check_host(None) if check.name == "KVM")
    assert check.verdict is verdict
    assert says in check.detail


async def test_ram_is_what_the_balloon_is_measured_against_and_what_is_outside_is_told(tmp_path, autojump_clock):
    async with simulated(tmp_path) as guest:
        guest.qemu.balloon.memory_bytes = 600 * MIB
        guest.qemu.plug("d0", "dimm", 300 * MIB)
        guest.qemu.plug("n0", "nvdimm", 4 * GIB)
        guest.qemu.plug("v0", "virtio-mem", 0, **{"requested-size": 512 * MIB})
        await trio.sleep(1)
        checks = await checks_of(a_config(tmp_path))
    assert checks["RAM"].verdict is Verdict.OK
    assert checks["RAM"].detail == "900M, and 512M by virtio-mem: charged to the budget, not moved"


def with_virtio_mem(directory, base_mib=200, **rates):
    load = Load(file_pages=1000, accesses_per_s=100.0)
    device = FakeVirtioMem(base_mib * MIB, 1024 * MIB, **rates)
    return open_simulated_guest("web", directory, load=load, memory_bytes=GIB, virtio_mem=device, interval_s=0.2)


async def test_a_guest_with_virtio_mem_in_order(tmp_path, autojump_clock):
    async with with_virtio_mem(tmp_path) as guest:
        guest.qemu.virtio_mem.request(712 * MIB)
        await trio.sleep(1)
        checks = await checks_of(a_config(tmp_path))
    assert [check for check in checks.values() if check.verdict is Verdict.FAIL] == []
    assert "size now 712M: 200M and what is plugged in blocks of 2M" in checks["virtio-mem"].detail
    assert "balloon" not in checks
    assert checks["RAM"].detail == "1.2G"


async def test_a_guest_without_the_driver_and_with_more_ram_than_its_floor(tmp_path, autojump_clock):
    async with with_virtio_mem(tmp_path, base_mib=500) as guest:
        guest.qemu.virtio_mem.stalled = True
        guest.qemu.virtio_mem.request(712 * MIB)
        await trio.sleep(1)
        checks = await checks_of(a_config(tmp_path))
    assert "asked to have 712M" in checks["virtio-mem driver"].detail
    assert "online_movable" in checks["virtio-mem driver"].todo
    assert "takes nothing of the RAM of 500M" in checks["floor"].detail


@pytest.mark.parametrize(("assigned", "says"), [(False, "the balloon"), (True, "virtio-mem, as an assigned device")])
async def test_which_of_two_moves_the_memory_is_said(tmp_path, autojump_clock, assigned, says):
    async with with_virtio_mem(tmp_path) as guest:
        guest.qemu.balloon, guest.qemu.balloon_id = FakeBalloon(200 * MIB), "balloon0"
        own = guest.qemu.commands["qom-list"]
        more = [{"name": "nic", "type": "child<vfio-pci>"}] * assigned
        guest.qemu.commands["qom-list"] = lambda arguments: own(arguments) + more
        await trio.sleep(1)
        checks = await checks_of(a_config(tmp_path))
    assert checks["moved by"].verdict is Verdict.OK
    assert checks["moved by"].detail.startswith(says)


async def test_a_balloon_that_gives_nothing_back_is_pointed_at_virtio_mem(tmp_path, autojump_clock):
    async with simulated(tmp_path) as guest:
        own = guest.qemu.commands["qom-list"]
        guest.qemu.commands["qom-list"] = lambda arguments: [
            *own(arguments),
            {"name": "nic", "type": "child<vfio-pci>"},
        ]
        await trio.sleep(1)
        checks = await checks_of(a_config(tmp_path))
    assert checks["pinned memory"].verdict is Verdict.FAIL
    assert "virtio-mem" in checks["pinned memory"].todo


async def test_a_confidential_guest_fails(tmp_path, autojump_clock):
    async with simulated(tmp_path) as guest:
        guest.qemu.machine["confidential-guest-support"] = "/objects/sev0"
        await trio.sleep(1)
        checks = await checks_of(a_config(tmp_path))
    assert checks["pinned memory"].verdict is Verdict.FAIL
    assert "/objects/sev0" in checks["pinned memory"].detail


@pytest.mark.parametrize(
    ("content", "verdict", "says"),
    [
        (None, Verdict.OK, "one page in 64 is sampled"),
        (b"", Verdict.WARN, "no curve: /run/qmpalloc/samples.bin: the samples file is shorter than its header"),
        ("absent", Verdict.OK, "no curve: accesses are not sampled (/run/qmpalloc/samples.bin cannot be read)"),
    ],
)
async def test_whether_there_will_be_a_curve(tmp_path, autojump_clock, content, verdict, says):
    load = ReplayGuest(
        "web", Uniform(), file_bytes=100 * MIB, accesses_per_s=4000, size_bytes=512 * MIB, observed=False, scale=64
    )
    async with open_simulated_guest("web", tmp_path, load=load, memory_bytes=GIB, interval_s=0.2) as guest:
        await trio.sleep(1)
        if content is not None:
            guest.sampling = False
            guest.agent.files["/run/qmpalloc/samples.bin"] = content
        if content == "absent":
            del guest.agent.files["/run/qmpalloc/samples.bin"]
        check = (await checks_of(a_config(tmp_path)))["curve"]
    assert check.verdict is verdict
    assert says in check.detail


async def test_sockets_that_are_not_there_or_no_sockets(tmp_path, autojump_clock):
    (tmp_path / "web.agent").write_text("")
    checks = await checks_of(a_config(tmp_path))
    assert "does not exist" in checks["monitor socket"].detail
    assert "is not a socket" in checks["agent socket"].detail


@pytest.mark.parametrize(
    ("directory_mode", "socket_mode", "who"),
    [
        (0o755, 0o755, ""),
        (0o700, 0o777, ""),
        (0o711, 0o777, "everybody"),
        (0o750, 0o770, "its group"),
        (0o755, 0o770, "its group"),
        (0o750, 0o700, ""),
    ],
)
def test_who_else_may_open_a_socket(directory_mode, socket_mode, who):
    assert who_else(socket_mode, [directory_mode, 0o755]) == who


async def test_a_socket_that_others_may_open_is_a_warning(tmp_path, autojump_clock, monkeypatch):
    (tmp_path / "inner").mkdir(mode=0o700)
    (tmp_path / "inner" / "socket").touch(mode=0o777)
    assert who_else_may_open(tmp_path / "inner" / "socket") == ""
    monkeypatch.setattr("qmpalloc.doctor.guests.who_else_may_open", lambda path: "everybody")
    async with simulated(tmp_path) as guest:
        guest.qemu.last_update = 1
        await trio.sleep(1)
        checks = await checks_of(a_config(tmp_path))
    for name in ("monitor socket", "agent socket"):
        assert checks[name].verdict is Verdict.WARN
        assert "may be opened by everybody" in checks[name].detail
        assert "mode 700" in checks[name].todo
    assert checks["monitor"].verdict is checks["agent"].verdict is Verdict.OK  # they are asked all the same


def test_the_command_exits_with_1_if_a_check_failed(tmp_path):
    file = tmp_path / "lab.toml"
    result = CliRunner().invoke(doctor, ["--json"], obj=None)
    assert result.exit_code == 0
    assert {check["subject"] for check in json.loads(result.output)} == {"host"}
    file.write_text('[host]\nbudget = "1GiB"\n[[guest]]\nname = "web"\nmonitor = "m"\nagent = "a"\n'
                    'floor = "1MiB"\ncap = "2MiB"\nbaseline = "1MiB"\n')  # fmt: skip
    result = CliRunner().invoke(doctor, [str(file)])
    assert result.exit_code == 1
    assert "does not exist" in result.output


@pytest.mark.parametrize(("mode", "verdict"), [(0o700, Verdict.OK), (0o755, Verdict.WARN)])
def test_a_run_directory_open_to_others_is_a_warning(tmp_path, mode, verdict):
    config = a_config(tmp_path)
    host = msgspec.structs.replace(config.host, run_dir=str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    checks = check_host(msgspec.structs.replace(config, host=host))
    assert next(check for check in checks if check.name == "run directory").verdict is verdict


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_run_directory_that_cannot_be_made_fails(tmp_path, place):
    (tmp_path / "file").touch()
    config = a_config(tmp_path)
    host = msgspec.structs.replace(config.host, run_dir=str(tmp_path / place))
    checks = check_host(msgspec.structs.replace(config, host=host))
    assert next(check for check in checks if check.name == "run directory").verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("policy", "settings", "verdict"),
    [("papper", {}, Verdict.FAIL), ("curve", {"margn": 1}, Verdict.FAIL), ("curve", {}, Verdict.OK)],
)
def test_a_policy_that_run_would_refuse_fails(tmp_path, policy, settings, verdict):
    config = msgspec.structs.replace(a_config(tmp_path), policy=policy, policy_settings=settings)
    (check,) = [check for check in check_host(config) if check.name == "policy"]
    assert check.verdict is verdict
    assert ("unknown" in check.detail) == (verdict is Verdict.FAIL)
