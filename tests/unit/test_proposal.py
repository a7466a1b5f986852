"""From QEMUs that run to a configuration: the pure parts, and what /proc tells."""

import os
from pathlib import Path

import click.testing
import msgspec
import pytest

from qmpalloc import cli
from qmpalloc.config import parse
from qmpalloc.errors import ConfigError
from qmpalloc.host import qemus as host_qemus
from qmpalloc.host.qemus import Qemu, find_qemus, hides_others
from qmpalloc.model import HostMemory
from qmpalloc.proposal import document, propose
from qmpalloc.proposal.seen import Lack, Memory, Seen
from qmpalloc.proposal.survey import _told_apart, unix_path
from qmpalloc.qemu.options import Address, guest_name, qmp_addresses
from qmpalloc.units import GIB, MIB

ROOMY = HostMemory(total_bytes=64 * GIB, available_bytes=32 * GIB)


# --- command lines


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-qmp unix:web.qmp,server=on,wait=off", Address("web.qmp")),
        ("--qmp unix:/run/a,server,nowait", Address("/run/a")),
        ("-qmp-pretty unix:/run/a,,b,server=on,wait=off", Address("/run/a,b")),
        ("-chardev socket,id=m,path=/run/m,server=on,wait=off -mon m,mode=control", Address("/run/m")),
        ("-mon chardev=m,mode=control -chardev socket,path=/run/m,server,id=m", Address("/run/m")),
        ("-chardev socket,id=m,path=/run/m,server=on -qmp chardev:m", Address("/run/m")),
        ("-chardev socket,id=m,path=/run/m,server=yes -qmp chardev:m", Address("/run/m")),
        ("-chardev socket,id=m,path=a,abstract=true,server=y -mon m,mode=control", Address("", "an abstract socket")),
        ("-qmp tcp:127.0.0.1:4444,server=on,wait=off", Address("", "tcp:127.0.0.1:4444,server=on,wait=off")),
        ("-qmp stdio", Address("", "stdio")),
        ("-qmp unix:/run/a", Address("", "a client of /run/a (server=off)")),
        ("-chardev socket,id=m,host=::1,port=4,server=on -mon m,mode=control", Address("", "TCP")),
        ("-chardev socket,id=m,path=a,abstract=on,server=on -mon m,mode=control", Address("", "an abstract socket")),
        ("-chardev stdio,id=m -mon m,mode=control", Address("", "stdio")),
        ("-mon m,mode=control", Address("", "a chardev that its command line does not have")),
    ],
)
def test_where_qmp_is_served(options, expected):
    assert qmp_addresses(["qemu-system-x86_64", *options.split()]) == [expected]


@pytest.mark.parametrize("options", ["", "-monitor unix:/run/a,server=on", "-mon chardev=m", "-S -qmp"])
def test_a_monitor_for_people_is_none(options):
    assert qmp_addresses(["qemu-system-x86_64", *options.split()]) == []


def test_a_socket_that_libvirt_passed():
    argv = ["qemu-kvm", "-chardev", "socket,id=c,fd=35,server=on,wait=off", "-mon", "chardev=c,mode=control"]
    (address,) = qmp_addresses(argv)
    assert "libvirt" in address.what


@pytest.mark.parametrize(
    ("value", "expected"),
    [("web", "web"), ("guest=web,debug-threads=on", "web"), ("debug-threads=on,guest=a,,b", "a,b"), ("process=x", "")],
)
def test_names(value, expected):
    assert guest_name(["qemu-system-x86_64", "-name", value]) == expected
    assert guest_name(["qemu-system-x86_64"]) == ""


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("disconnected:unix:web.agent,server=on", "web.agent"),
        ("unix:/tmp/a,b/agent,server", "/tmp/a,b/agent"),
        ("disconnected:unix:@abstract,server=on", ""),
        ("disconnected:tcp:127.0.0.1:1,server=on", ""),
        ("None", ""),
    ],
)
def test_qemus_description_of_a_socket(filename, expected):
    assert unix_path(filename) == expected


# --- processes


def process(proc, pid, argv, cwd=None, environ=""):
    place = proc / str(pid)
    place.mkdir()
    (place / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in argv))
    if cwd is not None:
        (place / "cwd").symlink_to(cwd)
        (place / "environ").write_text(environ)


def test_qemus_are_known_by_their_program(tmp_path):
    for pid, program in enumerate(
        (
            "qemu-system-x86_64",
            "/usr/libexec/qemu-kvm",
            "kvm",
            ".qemu-system-arm-wrapped",
            "qemu-system-x86_64-microvm",
        ),
        2,
    ):
        process(tmp_path, pid, [program, "-S"], "/run/a", "A=b\0PWD=/home/u\0")
    for pid, program in enumerate(("sh", "qemu-img", "qemu-system-x86_64.sh", "vim qemu-kvm"), 20):
        process(tmp_path, pid, [program, "qemu-system-x86_64"])
    process(tmp_path, 30, [])  # a thread of the kernel
    (tmp_path / "31").mkdir()  # has ended
    (tmp_path / "self").mkdir()
    found = find_qemus(tmp_path)
    assert [qemu.pid for qemu in found] == [2, 3, 4, 5, 6]
    assert found[0].directories == (Path("/run/a"), Path("/home/u"))
    assert found[1].program == "qemu-kvm"
    assert found[0].uid == os.getuid()
    assert hides_others(tmp_path)


def test_another_users_directories_are_not_shown(tmp_path):
    process(tmp_path, 1, ["kvm"])
    assert find_qemus(tmp_path)[0].directories == ()
    assert not hides_others(tmp_path)


@pytest.fixture
def running(monkeypatch):
    """Returns a function that says which QEMUs run, for user 1000."""

    def run(*qemus):
        monkeypatch.setattr(host_qemus, "find_qemus", lambda: list(qemus))
        monkeypatch.setattr(os, "geteuid", lambda: 1000)

    return run


def init(*arguments):
    return click.testing.CliRunner().invoke(cli.main, ["init", *arguments])


def test_other_users_qemus_need_their_user_or_root(running):
    running(Qemu(pid=7, uid=64055, argv=("kvm",)))
    result = init()
    assert result.exit_code == 1
    assert "QEMUs of other users: process 7" in result.output
    assert "or as root" in result.output


def test_none_runs(running, monkeypatch):
    running()
    monkeypatch.setattr(host_qemus, "hides_others", lambda: True)
    result = init()
    assert result.exit_code == 1
    assert "no QEMU runs here" in result.output
    assert "hidepid" in result.output


def test_a_process_that_is_none(running):
    running(Qemu(pid=7, uid=1000, argv=("kvm",)))
    result = init("8")
    assert result.exit_code == 2
    assert "process 8 is no QEMU" in result.output
    assert "those that run are: 7" in result.output


def test_a_file_that_exists_is_left(running, tmp_path):
    running()
    (tmp_path / "lab.toml").write_text("mine")
    result = init("-o", str(tmp_path / "lab.toml"))
    assert result.exit_code == 2
    assert "exists already" in result.output
    assert (tmp_path / "lab.toml").read_text() == "mine"


# --- sizes


def guest(size_bytes, ram_bytes=None, **facts):
    return Memory(size_bytes=size_bytes, ram_bytes=ram_bytes or size_bytes, **facts)


def sizes_of(proposal):
    return [tuple(size.size_bytes // MIB for size in (each.floor, each.baseline, each.cap)) for each in proposal.guests]


def test_with_room_guests_keep_what_they_have():
    proposal = propose([guest(GIB, 4 * GIB), guest(2 * GIB, used_bytes=300 * MIB)], ROOMY)
    assert proposal.budget.size_bytes == 3 * GIB
    assert sizes_of(proposal) == [(256, 1024, 4096), (364, 2048, 2048)]
    assert proposal.idle == ""


def test_a_host_without_room_cuts_what_is_above_the_floors():
    host = HostMemory(total_bytes=10 * GIB, available_bytes=GIB)
    proposal = propose([guest(4 * GIB, resident_bytes=2 * GIB), guest(4 * GIB, resident_bytes=2 * GIB)], host)
    assert proposal.budget.size_bytes == 4 * GIB
    assert sizes_of(proposal) == [(1024, 2048, 4096)] * 2
    assert "they have 8G, but the host has room for 4G" in proposal.budget.why


def test_a_host_without_room_for_the_floors_gets_a_budget_of_them():
    proposal = propose([guest(4 * GIB), guest(4 * GIB)], HostMemory(total_bytes=8 * GIB, available_bytes=GIB))
    assert proposal.budget.size_bytes == 2 * GIB
    assert sizes_of(proposal) == [(1024, 1024, 4096)] * 2
    assert "start fewer guests" in proposal.budget.why


def test_virtio_mem_takes_nothing_of_the_ram_and_what_is_beside_a_balloon_is_in_the_budget():
    moved = guest(3 * GIB, 6 * GIB, least_bytes=2 * GIB)
    proposal = propose([moved, guest(GIB, outside_bytes=512 * MIB)], ROOMY)
    assert sizes_of(proposal) == [(2048, 3072, 6144), (256, 1024, 1024)]
    assert proposal.budget.size_bytes == 4 * GIB + 512 * MIB


def test_where_nothing_can_move_it_is_said():
    assert "Lower the budget" in propose([guest(GIB), guest(GIB)], ROOMY).idle
    assert "one guest" in propose([guest(GIB, 2 * GIB)], ROOMY).idle


def test_a_host_that_does_not_tell_keeps_the_sizes():
    assert propose([guest(GIB), guest(GIB)], HostMemory()).budget.size_bytes == 2 * GIB


# --- the file


def seen(name, memory, **facts):
    paths = {"monitor": f"/run/{name}.qmp", "agent": f"/run/{name}.agent"}
    return Seen(**{"pid": 7, "program": "kvm", "name": name, "named": "its -name", **paths, "memory": memory, **facts})


@pytest.mark.parametrize("size_bytes", [64 * MIB, 100 * MIB + 12288, 257 * MIB + 4096, 5 * GIB])
@pytest.mark.parametrize("room_bytes", [0, 300 * MIB, GIB, 32 * GIB])
@pytest.mark.parametrize("used_bytes", [None, 10 * MIB, 200 * MIB, 90 * GIB])
def test_whatever_was_found_the_file_is_a_configuration(size_bytes, room_bytes, used_bytes):
    memories = [guest(size_bytes, 6 * GIB, used_bytes=used_bytes), guest(size_bytes), guest(GIB, 2 * GIB)]
    proposal = propose(memories, HostMemory(total_bytes=GIB, available_bytes=room_bytes))
    guests = [seen(f"guest-{number}", memory) for number, memory in enumerate(memories)]
    config = parse(document(guests, proposal, (), file="lab.toml"), file=Path("/lab.toml"))
    assert config.policy == "curve"
    assert [each.cap // MIB for each in config.guests] == [each.ram_bytes // MIB for each in memories]
    assert all(
        each.floor <= max(found.size_bytes + MIB, MIB) for each, found in zip(config.guests, memories, strict=True)
    )


def test_nothing_that_was_found_gets_out_of_its_comment():
    evil = "x\nbudget = 1\u202e\x1b[2J"
    lack = Lack(evil, evil)
    fit = seen("web", guest(GIB), named=evil, weak=(lack,))
    text = document([fit], propose([fit.memory], ROOMY), [msgspec.structs.replace(fit, lacks=(lack,))], file="lab.toml")
    assert parse(text, file=Path("/lab.toml")).host.budget == GIB
    assert "\x1b" not in text


@pytest.mark.parametrize("names", [["web", "web", "web-2"], ["web-2", "web", "web"], ["web"] * 3])
def test_no_two_guests_get_one_name_whatever_others_are_called(names):
    found = [Seen(pid=pid, program="qemu-kvm", name=name, named="its -name") for pid, name in enumerate(names)]
    assert sorted(guest.name for guest in _told_apart(found)) == ["web", "web-2", "web-3"]


def test_paths_with_quotes_are_written_and_those_that_cannot_be_shown_refused():
    fit = seen("web", guest(GIB), monitor='/run/a"b\\c é.qmp')
    text = document([fit], propose([fit.memory], ROOMY), (), file="lab.toml")
    assert parse(text, file=Path("/lab.toml")).guests[0].monitor == '/run/a"b\\c é.qmp'
    with pytest.raises(ConfigError, match="cannot show"):
        document([seen("web", guest(GIB), agent="/run/\udcff")], propose([guest(GIB)], ROOMY), (), file="lab.toml")
