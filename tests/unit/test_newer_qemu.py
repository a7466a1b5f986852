"""How the tests get a newer QEMU: unpacked once, started by its own loader, and never by accident."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "newer_qemu.py"
sys.path.insert(0, str(SCRIPT.parent))
import newer_qemu  # noqa: E402

sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def main(monkeypatch, capsys):
    """Run the script with some arguments; returns exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        code = newer_qemu.main()
        return code, *capsys.readouterr()

    return run


def test_nothing_is_fetched_when_it_is_only_asked_for(main):
    assert main("--if-there") == (0, "", "")


def test_what_is_there_is_used(main):
    newer_qemu.target_dir().mkdir(parents=True)
    expected = (0, f"{newer_qemu.target_dir() / 'bin'}\n", "")
    assert main("--if-there") == expected
    assert main() == expected


def test_a_failure_is_told_on_standard_error_and_leaves_nothing(main, monkeypatch):
    monkeypatch.setattr("qmpalloc.qemu.host.find_program", lambda name: None)
    code, output, errors = main()
    assert (code, output) == (1, "")
    assert "not installed: mmdebstrap" in errors
    assert not newer_qemu.target_dir().exists()


def test_a_program_is_started_by_its_own_loader_under_its_own_name(tmp_path):
    tree = tmp_path / "a b"
    (tree / "bin").mkdir(parents=True)
    (tree / "usr/lib64").mkdir(parents=True)
    # In place of the loader a program that tells how it was called.
    (tree / "usr/lib64/ld-linux-x86-64.so.2").symlink_to(sys.executable)
    text = newer_qemu.START_SCRIPT.format(name="qemu-x", program="usr/bin/qemu-x", options='-L "$tree/usr/share/qemu"')
    script = tree / "bin" / "qemu-x"
    script.write_text(text.replace("--library-path", "-c 'import sys; print(*sys.orig_argv, sep=\"\\n\")'"))
    script.chmod(0o755)
    environment = os.environ | {"PATH": f"{script.parent}:{os.environ['PATH']}"}
    called = subprocess.run(["qemu-x", "-m", "1 2"], env=environment, capture_output=True, text=True, check=True)
    words = called.stdout.splitlines()
    assert words[0] == "qemu-x"
    expected = ["--argv0", "qemu-x", f"{tree}/usr/bin/qemu-x", "-L", f"{tree}/usr/share/qemu", "-m", "1 2"]
    assert words[-len(expected) :] == expected
