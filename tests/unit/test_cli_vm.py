"""``vm`` and ``image`` without starting or building anything."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from qmpalloc.channel.command import OUTPUT_MAX_BYTES
from qmpalloc.cli import main, vm_exec
from qmpalloc.qemu import image, rundir
from qmpalloc.qemu.recipe import Variant
from qmpalloc.qemu.rundir import GuestRecord

CONFIG = """
[host]
budget = "2GiB"
run_dir = "run"

[[guest]]
name = "web"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
[guest.vm]
memory = "1GiB"
accelerator = "tcg"
data = { size = "512MiB", files = { "load.dat" = "256MiB" } }

[[guest]]
name = "db"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
vm = { memory = "1GiB", profile = "base", accelerator = "tcg" }

[[guest]]
name = "mine"
monitor = "mine.qmp"
agent = "mine.qga"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    file = tmp_path / "lab.toml"
    file.write_text(CONFIG)
    return file


def invoke(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_a_dry_run_prints_commands_that_a_shell_accepts_and_makes_nothing(config, tmp_path):
    result = invoke("vm", "up", config, "--dry-run")
    assert result.exit_code == 0
    assert subprocess.run(["sh", "-n"], input=result.stdout, text=True, check=False).returncode == 0
    commands = [line for line in result.stdout.splitlines() if line.startswith("setpriv")]
    assert len(commands) == 2  # the third guest is the user's own
    assert str(tmp_path / "run" / "web" / "people.sock") in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab.toml"]


def test_a_dry_run_of_detached_guests_ties_them_to_nobody(config):
    assert "setpriv" not in invoke("vm", "up", config, "--dry-run", "--detach").stdout


def test_a_configuration_without_guests_to_start(config):
    config.write_text(config.read_text().split("[[guest]]")[0] + "[[guest]]" + config.read_text().split("[[guest]]")[3])
    result = invoke("vm", "up", config)
    assert result.exit_code == 2
    assert "no guest is to be started" in result.stderr


def test_a_load_needs_the_lab_profile(config):
    config.write_text(config.read_text().replace('profile = "base"', 'profile = "base", load = ["fio"]'))
    result = invoke("vm", "up", config)
    assert result.exit_code == 2
    assert "guest[1].vm.load" in result.stderr


def test_a_data_disk_that_is_too_small_is_known_before_anything_is_built(config, tmp_path):
    config.write_text(config.read_text().replace('"load.dat" = "256MiB"', '"load.dat" = "512MiB"'))
    result = invoke("vm", "up", config)
    assert result.exit_code == 2
    assert "guest[0].vm.data.size: the files need" in result.stderr
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def two_guests(config, tmp_path):
    """Two records: one of this very process, one of a process that is gone."""
    for name, ticks in (("web", rundir.start_ticks(os.getpid())), ("db", 1)):
        (tmp_path / "run" / name).mkdir(parents=True)
        record = GuestRecord(
            name=name, pid=os.getpid(), start_ticks=ticks or 0, boot_id=rundir.host_boot_id(), started_at_s=0.0,
            config_file=str(config), memory_bytes=1 << 30, accelerator="tcg", image="i", monitor="/m", agent="/a",
            detached=True,
        )  # fmt: skip
        rundir.write_record(tmp_path / "run" / name, record)


@pytest.mark.usefixtures("two_guests")
def test_ls_tells_the_living_from_the_gone(config):
    lines = invoke("vm", "ls", config).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["db", "gone"], ["web", "running"]]
    rows = json.loads(invoke("vm", "ls", config, "--json").stdout)
    assert [(row["name"], row["alive"], row["memory_bytes"]) for row in rows] == [
        ("db", False, 1 << 30), ("web", True, 1 << 30),
    ]  # fmt: skip


@pytest.mark.usefixtures("two_guests")
def test_down_clears_what_is_gone(config, tmp_path):
    result = invoke("vm", "down", config, "--guest", "db")
    assert result.stdout == "db: was gone already\n"
    assert [record.name for record in rundir.list_records(tmp_path / "run")] == ["web"]


@pytest.mark.usefixtures("two_guests")
def test_down_of_an_unknown_guest(config):
    result = invoke("vm", "down", config, "--guest", "cache")
    assert result.exit_code == 2
    assert "no guest cache" in result.stderr


def test_without_a_configuration_the_default_run_directory_is_meant(config, tmp_path):
    assert str(tmp_path / "runtime" / "qmpalloc") in invoke("vm", "ls").stderr
    assert json.loads(invoke("vm", "ls", "--json").stdout) == []
    assert invoke("vm", "down").exit_code == 0


def test_images_are_listed_and_pruned(config, monkeypatch):
    def make(partial, variant, **options):
        planned = image.planned_image(variant)
        (partial / "manifest.json").write_bytes(image.msgspec.json.encode(planned.manifest))

    monkeypatch.setattr(image, "_make", make)
    assert invoke("image", "ls").stderr.startswith("no image is built")
    built = image.obtain_image(Variant())
    former = built.directory.with_name("trixie-lab-000000000000")
    former.mkdir()
    (former / "manifest.json").write_bytes((built.directory / "manifest.json").read_bytes())
    rows = json.loads(invoke("image", "ls", "--json").stdout)
    assert {(row["name"], row["current"]) for row in rows} == {(former.name, False), (built.directory.name, True)}
    spoilt = built.directory.with_name("trixie-lab-111111111111")
    spoilt.mkdir()
    (spoilt / "manifest.json").write_text("{")
    for command, first in (("ls", former.name), ("prune", "removed")):
        result = invoke("image", command)
        assert result.stdout.startswith(first)
        assert f"warning: {spoilt} is not an image: " in result.stderr
    assert not former.exists()
    assert spoilt.exists()
    assert invoke("image", "build").stdout == f"{built.directory}\n"


@pytest.mark.parametrize(("second", "code"), [("aa", 0), ("bb", 1)])
def test_the_check_of_reproducibility_compares(config, monkeypatch, second, code):
    monkeypatch.setattr(image, "check_reproducible", lambda *args, **options: ("aa", second))
    assert invoke("image", "build", "--check-reproducible").exit_code == code


# ------------------------------------------------------------------------------------------------- programs in a guest

COMMAND_GUEST = """
[host]
budget = "2GiB"

[[guest]]
name = "cloud"
monitor = "cloud.qmp"
agent = "cloud.qga"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
channel = ["sh", "-c"]
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A configuration with one guest whose channel is a shell of this host."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    file = tmp_path / "cloud.toml"
    file.write_text(COMMAND_GUEST)
    return file


def test_a_programs_exit_code_is_ours_and_its_streams_too(cloud):
    words = [sys.executable, "-m", "qmpalloc", "vm", "exec", "cloud", "--config", str(cloud), "-i"]
    line = ["--", "sh", "-c", 'cat; echo "$1" >&2; exit 42', "sh", "--config  x"]
    done = subprocess.run([*words, *line], input="given\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (42, "given\n", "--config  x\n")


def test_files_are_copied_in_and_out_with_their_names_and_modes(cloud, tmp_path):
    source, inside, back = tmp_path / "tool", tmp_path / "guest", tmp_path / "back"
    inside.mkdir()
    back.mkdir()
    source.write_bytes(b"\0\1tool")
    source.chmod(0o750)
    assert invoke("vm", "cp", source, f"cloud:{inside}/", "--config", cloud).exit_code == 0
    assert (inside / "tool").read_bytes() == b"\0\1tool"
    assert (inside / "tool").stat().st_mode & 0o777 == 0o750
    assert invoke("vm", "cp", f"cloud:{inside}/tool", back, "--config", cloud).exit_code == 0
    assert (back / "tool").read_bytes() == b"\0\1tool"


def test_a_large_file_is_copied_whole(cloud, tmp_path):
    inside, back = tmp_path / "inside", tmp_path / "back"
    inside.write_bytes(b"x" * (OUTPUT_MAX_BYTES + 1))
    assert invoke("vm", "cp", f"cloud:{inside}", back, "--config", cloud).exit_code == 0
    assert back.stat().st_size == OUTPUT_MAX_BYTES + 1


def test_what_is_copied_to_a_link_or_a_pipe_leaves_it_there(cloud, tmp_path):
    inside, file, link, pipe = (tmp_path / name for name in ("inside", "file", "link", "pipe"))
    inside.write_bytes(b"inside")
    link.symlink_to(file)
    os.mkfifo(pipe)
    assert invoke("vm", "cp", f"cloud:{inside}", link, "--config", cloud).exit_code == 0
    assert (link.is_symlink(), file.read_bytes()) == (True, b"inside")
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        assert invoke("vm", "cp", f"cloud:{inside}", pipe, "--config", cloud).exit_code == 0
        assert (pipe.is_fifo(), reader.read()) == (True, b"inside")


def test_a_device_without_end_is_not_copied(cloud, tmp_path, monkeypatch):
    monkeypatch.setattr(vm_exec, "COPY_MAX_BYTES", 4096)
    done = invoke("vm", "cp", "/dev/zero", f"cloud:{tmp_path}/zero", "--config", cloud)
    assert (done.exit_code, "/dev/zero is larger than" in done.output) == (1, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cp", "a", "b"], "one of SOURCE and TARGET must be GUEST:PATH"),
        (["cp", "cloud:/a", "cloud:/b"], "one of SOURCE and TARGET must be GUEST:PATH"),
        (["cp", "cloud:a", "b"], "cloud:a: the path in a guest is absolute"),
        (["cp", "no-such-file", "cloud:/b"], "no-such-file cannot be read: No such file"),
        (["cp", "cloud:/no/such/file", "b"], "/no/such/file"),
        (["cp", "cloud:/etc/hostname", "b" * 300], " cannot be written: File name too long"),
        (["exec", "other", "--", "true"], "no guest is called 'other'"),
    ],
)
def test_what_cannot_be_copied_or_run_is_named(cloud, words, message):
    command, *rest = words
    done = invoke("vm", command, "--config", cloud, *rest)
    assert done.exit_code in {1, 2}
    assert message in done.output


def test_without_a_configuration_the_guests_that_were_started_are_known(config):
    done = invoke("vm", "exec", "nobody", "--", "true")
    assert done.exit_code == 2
    assert "no guest nobody in " in done.output
    assert "--config" in done.output


def test_a_guest_without_an_agents_socket_is_named(config):
    done = invoke("vm", "exec", "mine", "--config", config, "--", "true")
    assert done.exit_code == 1
    assert "mine.qga: no such socket" in done.output


@pytest.mark.parametrize("channel", ['"ssh"', "[]", '[""]', "7"])
def test_a_channel_that_is_no_command_is_refused(cloud, channel):
    cloud.write_text(COMMAND_GUEST.replace('["sh", "-c"]', channel))
    done = invoke("vm", "exec", "cloud", "--config", cloud, "--", "true")
    assert done.exit_code == 2
    assert "guest[0].channel: " in done.output
