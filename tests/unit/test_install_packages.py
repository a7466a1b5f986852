"""What `make` says on a machine where it may not, or cannot, install anything."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "install-packages"


@pytest.fixture
def run(tmp_path):
    """Run the script where only the given programs exist."""

    def run_with(programs, what="--test"):
        for name, body in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)
        shell = shutil.which("sh")
        return subprocess.run(
            [shell, str(SCRIPT), what], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
        )

    return run_with


NOTHING_INSTALLED = "exit 1"
ALL_INSTALLED = "printf installed"


def test_another_distribution_is_told_which_programs_are_missing(run):
    result = run({"mke2fs": "true", "ss": "true"})
    assert result.returncode == 1
    assert "not Debian or Ubuntu" in result.stderr
    assert "qemu-system-x86_64 qemu-img mmdebstrap setpriv\n" in result.stderr


def test_another_distribution_that_has_everything_is_fine(run):
    names = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", "setpriv", "ss")
    assert run(dict.fromkeys(names, "true")).returncode == 0


def test_without_root_and_sudo_the_command_to_run_is_told(run):
    result = run({"apt-get": "exit 9", "dpkg-query": NOTHING_INSTALLED, "id": "echo 1000"})
    assert result.returncode == 1
    assert "Please install as root" in result.stderr
    assert "apt-get install --no-install-recommends qemu-system-x86 " in result.stderr


def test_guests_of_arm64_take_an_emulator_of_the_machine_and_one_of_programs(run):
    result = run({"apt-get": "exit 9", "dpkg-query": NOTHING_INSTALLED, "id": "echo 1000"}, "--arm")
    assert " qemu-system-arm qemu-user-static arch-test" in result.stderr


def test_on_a_host_of_arm64_its_own_emulator_is_installed(run):
    programs = {"apt-get": "exit 9", "dpkg-query": NOTHING_INSTALLED, "id": "echo 1000", "uname": "echo aarch64"}
    result = run(programs)
    assert "--no-install-recommends qemu-system-arm qemu-utils " in result.stderr
    assert "qemu-system-x86" not in result.stderr
    assert "binfmt" not in run(programs, "--arm").stderr


def test_when_all_is_installed_apt_is_not_called(run):
    result = run({"apt-get": "exit 9", "dpkg-query": ALL_INSTALLED, "id": "echo 1000"})
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_sudo_is_used_for_apt_alone(run):
    result = run({"apt-get": "true", "dpkg-query": NOTHING_INSTALLED, "id": "echo 1000", "sudo": 'echo "sudo $*"'})
    assert result.returncode == 0
    called = [line for line in result.stdout.splitlines() if line.startswith("sudo")]
    assert [line.split()[1] for line in called] == ["apt-get", "env"]
    assert "qemu-guest-agent" in called[1]
