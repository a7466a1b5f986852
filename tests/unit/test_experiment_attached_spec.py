"""Guests of the user's in an experiment's file: what is read, what is refused, and what is said not to be reset."""

from pathlib import Path

import pytest

from qmpalloc.errors import ConfigError
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.spec import parsing
from qmpalloc.experiment.spec.checks import check_memory
from qmpalloc.units import GIB, MIB

GOOD = """
[experiment]
name = "try"
budget = "2GiB"
[[guest]]
name = "cloud"
memory = "1GiB"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
[guest.attach]
monitor = "vm/qmp"
second_monitor = "unix:vm/qmp2"
agent = "/run/vm/qga"
channel = ["ssh", "-p", "2222", "root@127.0.0.1"]
[guest.start]
command = ["./start", "cloud"]
timeout = "5min"
[[guest.phase]]
file = "256MiB"
access = { distribution = "uniform" }
reads = 100
rounds = 10
[[arm]]
name = "static"
policy = "static"
"""


def parsed(text):
    return parsing.parse(text, file=Path("/somewhere/try.toml"))


def test_sockets_lie_beside_the_file_and_files_in_a_directory_of_the_guest():
    guest = parsed(GOOD).guests[0]
    assert (guest.attach.monitor, guest.attach.second_monitor) == ("/somewhere/vm/qmp", "/somewhere/vm/qmp2")
    assert guest.attach.agent == "/run/vm/qga"
    assert guest.attach.channel == ("ssh", "-p", "2222", "root@127.0.0.1")
    assert (guest.start.command, guest.start.stop, guest.start.timeout) == (("./start", "cloud"), (), 300.0)
    assert guest.path("file-256M.dat") == "/var/tmp/qmpalloc-data/file-256M.dat"


@pytest.mark.parametrize(
    ("change", "agent"),
    [(("", ""), "/run/vm/qga"), (('["ssh", "-p", "2222", "root@127.0.0.1"]', '"agent"'), "/tmp/run/cloud/agent.sock")],
)
def test_the_controller_gets_the_users_sockets_and_shares_an_agent_that_runs_programs(change, agent):
    specification = parsed(GOOD.replace(*change))
    config = arm_configuration(specification, specification.arms[0], run_dir=Path("/tmp/run"))
    guest = config.guests[0]
    assert (guest.monitor, guest.agent, guest.vm) == ("/somewhere/vm/qmp", agent, None)
    assert (guest.floor, guest.baseline) == (256 * MIB, 512 * MIB)


SECOND = 'second_monitor = "unix:vm/qmp2"'


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        (('monitor = "vm/qmp"\n', ""), "guest[0].attach.monitor", "missing"),
        ((SECOND, 'second_monitor = "vm/qmp"'), "guest[0].attach.second_monitor", "second -qmp unix:PATH"),
        ((SECOND, 'second_monitor = "tcp:localhost:4444"'), "guest[0].attach.second_monitor", "is not supported"),
        (('"/run/vm/qga"', '"vm/qmp"'), "guest[0].attach.agent", "is a monitor's socket"),
        (('"/run/vm/qga"', f'"/{"x" * 110}"'), "guest[0].attach.agent", "107 bytes at most"),
        (('["ssh", "-p", "2222", "root@127.0.0.1"]', "[]"), "guest[0].attach.channel", "is no command"),
        (('["ssh", "-p", "2222", "root@127.0.0.1"]', '"ssh"'), "guest[0].attach.channel", "'agent'"),
        (('agent = "/run', 'data = "data"\nagent = "/run'), "guest[0].attach.data", "absolute path inside the guest"),
        (('agent = "/run', 'disk = "vda"\nagent = "/run'), "guest[0].attach.disk", "did you mean disks?"),
        (('["./start", "cloud"]', '[""]'), "guest[0].start.command", "is no command"),
        (('"5min"', '"0s"'), "guest[0].start.timeout", "must be above 0"),
        (('name = "cloud"', 'name = "cloud"\nsuite = "trixie"'), "guest[0].suite", "beside attach"),
        (('name = "cloud"', 'name = "cloud"\nimage = { size = "4GiB" }'), "guest[0].image", "beside attach"),
        (('name = "cloud"', 'name = "cloud"\ndata = { build = ["fill.sh"] }'), "guest[0].data", "beside attach"),
        (('policy = "static"', 'policy = "static"\n[[arm]]\nname = "o"\npolicy = "oracle"'), "arm[1].policy", "lru ="),
    ],
)
def test_a_mistake_is_named_with_file_key_and_hint(change, key, says):
    assert change[0] in GOOD
    with pytest.raises(ConfigError) as caught:
        parsed(GOOD.replace(*change, 1))
    assert f"/somewhere/try.toml: {key}: " in str(caught.value)
    assert says in str(caught.value)


def test_a_command_without_sockets_is_refused():
    lines = GOOD.splitlines()
    del lines[lines.index("[guest.attach]") : lines.index("[guest.start]")]
    with pytest.raises(ConfigError, match=r"guest\[0\]\.start: without attach") as caught:
        parsed("\n".join(lines))
    assert "[guest.attach]" in caught.value.hint


def test_two_guests_have_sockets_of_their_own():
    first, _, rest = GOOD.partition("[[guest]]")
    guest, _, arms = rest.partition("[[arm]]")
    two = (
        f"{first}[[guest]]{guest}[[guest]]{guest.replace('cloud', 'other').replace('vm/qmp2', 'vm/qmp3')}[[arm]]{arms}"
    )
    with pytest.raises(ConfigError) as caught:
        parsed(two)
    keys = [error.key for error in caught.value.each]
    assert keys == ["guest[1].attach.monitor", "guest[1].attach.agent"]
    assert "is already guest[0].attach.monitor" in caught.value.each[0].reason


def test_memory_that_runs_already_is_not_asked_of_the_host_again():
    runs = parsed(GOOD.replace('[guest.start]\ncommand = ["./start", "cloud"]\ntimeout = "5min"\n', ""))
    check_memory(runs, GIB // 2)
    with pytest.raises(ConfigError, match="adds up to 1G") as caught:
        check_memory(parsed(GOOD), GIB // 2)
    assert caught.value.key == "guest[0].memory"


def test_what_is_not_reset_is_said():
    started = parsed(GOOD).not_reset
    assert "started by your command for every run" in started[0]
    assert "snapshot=on" in started[0]
    runs = parsed(GOOD.replace('[guest.start]\ncommand = ["./start", "cloud"]\ntimeout = "5min"\n', "")).not_reset
    assert "runs on from arm to arm" in runs[0]
    assert "not throttled" in runs[1]
    throttled = parsed(GOOD.replace('agent = "/run', 'disks = ["vda"]\nagent = "/run')).not_reset
    assert len(throttled) == 1
