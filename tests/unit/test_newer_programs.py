"""How the tests get newer programs: unpacked once, started by their own loader, and never by accident."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "newer_programs.py"
sys.path.insert(0, str(SCRIPT.parent))
import newer_programs  # noqa: E402

sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def main(monkeypatch, capsys):
    """Run the script with some arguments; returns exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        code = newer_programs.main()
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def start_script(tmp_path):
    """Make a start script with, in place of the loader, a program that tells how it was called."""

    def make(name, options=""):
        tree = tmp_path / "a b"
        (tree / "bin").mkdir(parents=True)
        (tree / "usr/lib64").mkdir(parents=True)
        (tree / "usr/lib64/ld-linux-x86-64.so.2").symlink_to(sys.executable)
        text = newer_programs.START_SCRIPT.format(name=name, program=f"usr/bin/{name}", options=options)
        script = tree / "bin" / name
        script.write_text(text.replace("--library-path", "-c 'import sys; print(*sys.orig_argv, sep=\"\\n\")'"))
        script.chmod(0o755)
        return tree, script

    return make


def words(argv, **options):
    """Return the words with which the loader was called."""
    return subprocess.run(argv, capture_output=True, text=True, check=True, **options).stdout.splitlines()


def test_nothing_is_fetched_when_it_is_only_asked_for(main):
    assert main("qemu", "--if-there") == (0, "", "")


@pytest.mark.parametrize("name", sorted(newer_programs.PROGRAMS))
def test_what_is_there_is_used(main, name):
    newer_programs.target_dir(name).mkdir(parents=True)
    expected = (0, f"{newer_programs.target_dir(name) / 'bin'}\n", "")
    assert main(name, "--if-there") == expected
    assert main(name) == expected


def test_a_failure_is_told_on_standard_error_and_leaves_nothing(main, monkeypatch):
    monkeypatch.setattr("qmpalloc.qemu.host.find_program", lambda name: None)
    code, output, errors = main("python3.14")
    assert (code, output) == (1, "")
    assert "not installed: mmdebstrap" in errors
    assert not newer_programs.target_dir("python3.14").exists()


def test_a_program_is_started_by_its_own_loader_under_its_own_name(start_script):
    tree, script = start_script("qemu-x", '-L "$tree/usr/share/qemu"')
    called = words(["qemu-x", "-m", "1 2"], env=os.environ | {"PATH": f"{script.parent}:{os.environ['PATH']}"})
    assert called[0] == "qemu-x"
    expected = ["--argv0", str(script), f"{tree}/usr/bin/qemu-x", "-L", f"{tree}/usr/share/qemu", "-m", "1 2"]
    assert called[-len(expected) :] == expected


def test_an_interpreter_hears_that_it_was_called_by_the_link_of_a_venv(start_script, tmp_path):
    tree, script = start_script("python3.x")
    link = tmp_path / "venv" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(script)
    assert words([link])[-3:] == ["--argv0", str(link), f"{tree}/usr/bin/python3.x"]
