"""``guest install`` and ``guest remove``: which guests, and that one which cannot be reached stops no other."""

import pytest
from click.testing import CliRunner

from qmpalloc import installation
from qmpalloc.cli import main
from qmpalloc.errors import HostError

GUEST = """
[[guest]]
name = "{name}"
monitor = "{name}.qmp"
agent = "{name}.qga"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
channel = {channel}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Three guests: one refuses the key, one has a shell of this host, one has an agent whose socket is not there."""
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho 'root@db: Permission denied (publickey).' >&2; exit 255\n")
    ssh.chmod(0o755)
    channels = {"db": f'["{ssh}"]', "web": '["sh", "-c"]', "mail": '"agent"'}
    file = tmp_path / "lab.toml"
    text = "".join(GUEST.format(name=name, channel=channel) for name, channel in channels.items())
    file.write_text(f'[host]\nbudget = "4GiB"\n{text}')
    return file


@pytest.fixture
def installed(monkeypatch):
    """Guests in which the collector is installed, without touching any."""
    names = []

    async def install(channel, guest, counters_file):
        names.append((guest, channel.address, counters_file))
        return 12.34, ["starting (openrc)"]

    async def remove(channel, guest):
        names.remove((guest, channel.address, "/run/qmpalloc/counters.json"))
        return "removed"

    monkeypatch.setattr(installation, "install", install)
    monkeypatch.setattr(installation, "remove", remove)
    return names


def invoke(*args):
    return CliRunner().invoke(main, ["guest", *map(str, args)])


def test_a_guest_that_cannot_be_reached_stops_no_other(config, installed):
    done = invoke("install", config)
    assert done.exit_code == 1
    assert "guest db: no command can be run in it by " in done.output
    assert "ssh-copy-id" in done.output
    assert "mail.qga: no such socket" in done.output
    assert "web: starting (openrc)\n" in done.stderr
    assert "web: the first sample came 12.3 s after the installation began\n" in done.stdout
    assert installed == [("web", "sh -c", "/run/qmpalloc/counters.json")]


def test_one_guest_alone_is_installed_in_and_removed_from(config, installed):
    assert invoke("install", config, "--guest", "web").exit_code == 0
    done = invoke("remove", config, "--guest", "web")
    assert (done.exit_code, done.output, installed) == (0, "web: removed\n", [])


def test_a_failure_in_a_guest_is_the_commands(config, monkeypatch):
    async def install(channel, guest, counters_file):
        raise HostError(f"guest {guest}: missing: bcc (apk add py3-bcc)")

    monkeypatch.setattr(installation, "install", install)
    done = invoke("install", config, "--guest", "web")
    assert done.exit_code == 1
    assert "apk add py3-bcc" in done.output


def test_a_guest_that_is_not_in_the_file_is_named(config):
    done = invoke("install", config, "--guest", "other")
    assert done.exit_code == 2
    assert "no guest is called 'other'" in done.output


EXPERIMENT = """
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
monitor = "qmp"
second_monitor = "qmp2"
agent = "qga"
channel = ["sh", "-c"]
counters_file = "/run/other.json"
[[guest.phase]]
command = ["true"]
[[arm]]
name = "static"
policy = "static"
"""


def test_an_experiments_own_guests_are_installed_in(tmp_path, installed):
    file = tmp_path / "try.toml"
    file.write_text(EXPERIMENT)
    assert invoke("install", file).exit_code == 0
    assert installed == [("cloud", "sh -c", "/run/other.json")]


def test_an_experiment_without_guests_of_ones_own_is_refused(tmp_path):
    file = tmp_path / "try.toml"
    before, _, rest = EXPERIMENT.partition("[guest.attach]")
    file.write_text(before + rest[rest.index("[[guest.phase]]") :])
    done = invoke("install", file)
    assert done.exit_code == 2
    assert "try.toml: guest: no guest has [guest.attach]" in done.output
