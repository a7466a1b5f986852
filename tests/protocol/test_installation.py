"""The collector brought into a guest and taken out, against a fake that does what ``install.sh`` does."""

import io
import json
import tarfile

import pytest

from qmpalloc import installation
from qmpalloc.errors import DeadlineError, HostError, RefusedError
from qmpalloc.sample import parse
from qmpalloc.testing import FakeAgent
from tests.protocol.clients import agent_of, result

COUNTERS = "/run/qmpalloc/counters.json"
DIRECTORY = "/tmp/qmpalloc-install.Ab12Cd"


def counters(start_id):
    text = {
        "format": "qmpalloc-counters", "version": 1, "boot_id": "0" * 8 + "-0000-0000-0000-" + "0" * 12,
        "start_id": start_id * 16, "sequence": 1, "monotonic_ns": 1, "interval_ms": 1000, "kernel": "6.12",
        "page_size": 4096, "lru": "lru_gen", "counters": {"accesses": 1, "inserts_read": 1},
    }  # fmt: skip
    return json.dumps(text).encode()


class Guest:
    def __init__(self):
        self.agent = FakeAgent(program=self.program)
        self.directory = DIRECTORY
        self.answers = {}
        self.start_id = "b"
        self.ran = []

    def program(self, argv, _data):
        line = " ".join(argv)
        self.ran.append(line)
        for words, answer in self.answers.items():
            if words in line:
                return answer
        if "mktemp" in line:
            return result(out=f"{self.directory}\n".encode())
        if "--uninstall" in line:
            self.agent.files.pop(COUNTERS, None)
            return result(out=b"removed\n")
        if "install.sh" in line and self.start_id:
            self.agent.files[COUNTERS] = counters(self.start_id)
            return result(out=b"starting (systemd)\ncounting: it\x1b[2J\n")
        return result()

    def connected(self):
        return agent_of(self.agent, "/run/lab.sock")

    @property
    def scripts(self):
        return [line.rpartition("/")[2] for line in self.ran if "install.sh" in line]


async def test_the_collector_is_brought_started_and_its_first_sample_awaited(autojump_clock):
    guest = Guest()
    async with guest.connected() as agent:
        seconds, notes = await installation.install(agent, "web", COUNTERS)
    assert seconds >= 0
    assert notes[0] == "starting (systemd)"
    assert "\x1b" not in notes[1]
    with tarfile.open(fileobj=io.BytesIO(guest.agent.files[f"{DIRECTORY}/collector.tar"])) as tar:
        names = {name.removeprefix("guest_agent/") for name in tar.getnames()}
    assert {"install.sh", "program.c", "reader.py", "qmpalloc-collector.openrc"} <= names
    assert guest.ran[-1] == f"rm -rf {DIRECTORY}"


async def test_an_update_waits_for_a_sample_of_the_new_collector(autojump_clock):
    guest = Guest()
    guest.agent.files[COUNTERS] = counters("a")
    async with guest.connected() as agent:
        await installation.install(agent, "web", COUNTERS)
    assert parse(guest.agent.files[COUNTERS]).start_id == "b" * 16


async def test_what_is_missing_in_the_guest_is_said(autojump_clock):
    guest = Guest()
    missing = b"  missing: bcc for /usr/bin/python3 (apk add py3-bcc)\ninstall.sh: nothing was installed\n"
    guest.answers["install.sh"] = result(1, err=missing)
    async with guest.connected() as agent:
        with pytest.raises(HostError, match=r"guest web: +missing: bcc .*\(apk add py3-bcc\)\n") as caught:
            await installation.install(agent, "web", COUNTERS)
    assert "leaves the guest as it was" in caught.value.hint
    assert guest.ran[-1] == f"rm -rf {DIRECTORY}"


@pytest.mark.parametrize("before", [True, False])
async def test_without_a_sample_a_new_collector_is_taken_out_again(autojump_clock, before):
    guest = Guest()
    guest.start_id = ""
    if before:
        guest.agent.files[COUNTERS] = counters("a")
    async with guest.connected() as agent:
        with pytest.raises(HostError, match=f"guest web: no sample in {COUNTERS} after 60 s") as caught:
            await installation.install(agent, "web", COUNTERS)
    assert "counters_file" in caught.value.hint
    assert guest.scripts == ["install.sh"] if before else ["install.sh", "install.sh --uninstall"]
    assert guest.ran[-1] == f"rm -rf {DIRECTORY}"


async def test_it_is_taken_out(autojump_clock):
    guest = Guest()
    async with guest.connected() as agent:
        assert await installation.remove(agent, "web") == "removed"
    assert guest.scripts == ["install.sh --uninstall"]


async def test_a_guest_that_hangs_is_given_up_with_its_name(autojump_clock):
    guest = Guest()
    async with guest.connected() as agent:
        guest.agent.program_s = 1e6
        with pytest.raises(DeadlineError, match="no answer to /bin/sh within 60 s"):
            await installation.install(agent, "web", COUNTERS)


async def test_an_agent_that_may_not_run_programs_is_told_what_to_allow(autojump_clock):
    guest = Guest()
    guest.agent = FakeAgent()
    async with guest.connected() as agent:
        with pytest.raises(RefusedError, match="guest-exec") as caught:
            await installation.install(agent, "web", COUNTERS)
    assert "allow guest-exec" in caught.value.hint


async def test_a_directory_that_the_guest_makes_up_is_not_used(autojump_clock):
    guest = Guest()
    guest.directory = "/tmp/qmpalloc-install.x /etc"
    async with guest.connected() as agent:
        with pytest.raises(HostError, match="no directory can be made in its /tmp"):
            await installation.install(agent, "web", COUNTERS)
    assert len(guest.ran) == 1


async def test_a_tar_that_does_not_unpack_is_said(autojump_clock):
    guest = Guest()
    guest.answers["tar -C"] = result(127, err=b"sh: tar: not found")
    async with guest.connected() as agent:
        with pytest.raises(HostError, match="guest web: the collector cannot be unpacked: sh: tar: not found"):
            await installation.install(agent, "web", COUNTERS)
    assert guest.ran[-1] == f"rm -rf {DIRECTORY}"
