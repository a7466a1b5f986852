"""A program that is missing or fails is named with what to do; what it prints reaches the terminal cleaned."""

import stat
import sys
import time
from pathlib import Path

import pytest

from qmpalloc.errors import HostError
from qmpalloc.qemu import host


def test_missing_programs_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(host, "SEARCH_PATH", "/nowhere")
    with pytest.raises(HostError) as caught:
        host.require(["qemu-system-x86_64", "mke2fs"])
    assert caught.value.message == "not installed: qemu-system-x86_64, mke2fs"
    assert caught.value.hint == "apt install e2fsprogs qemu-system-x86"


def test_a_failure_carries_the_last_lines_without_control_characters():
    program = "import sys; print('\\n'.join(f'line {n}' for n in range(50)), '\\x1b[31mred'); sys.exit(3)"
    with pytest.raises(HostError) as caught:
        host.run([sys.executable, "-c", program], what="the test")
    message = caught.value.message
    assert message.startswith("the test failed (exit code 3)\n    line 38\n")
    assert "\x1b" not in message
    assert message.endswith("?[31mred")


def test_lines_are_handed_on_as_they_come():
    lines = []
    output = host.run([sys.executable, "-c", "print('a'); print('b')"], what="x", on_line=lines.append)
    assert (output, lines) == ("a\nb\n", ["a", "b"])


def test_what_a_program_leaves_running_does_not_hold_it_up():
    pid = host.run(["sh", "-c", "sleep 1000 & echo $!"], what="forking").strip()
    deadline_s = time.monotonic() + 30
    while _state(pid) not in {"", "Z"}:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def _state(pid):
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_output_without_end_is_not_kept(monkeypatch):
    monkeypatch.setattr(host, "KEPT_LINES", 3)
    monkeypatch.setattr(host, "LINE_CHARS", 100)
    seen = []
    last = host.run(["sh", "-c", "head -c 1000 /dev/zero | tr '\\0' x; echo"], what="printing", on_line=seen.append)
    assert (len(seen), last) == (11, "x" * 200 + "\n")


def test_no_room(tmp_path):
    with pytest.raises(HostError, match=r"has .* free, 1.02e\+03T are needed|has .* free, 1024T are needed"):
        host.require_space(tmp_path, 1 << 50)


def test_root_needs_no_namespace(monkeypatch):
    monkeypatch.setattr(host.os, "geteuid", lambda: 0)
    assert host.as_root(["mke2fs"]) == ["mke2fs"]


def test_a_user_becomes_root_of_a_namespace(monkeypatch):
    monkeypatch.setattr(host.os, "geteuid", lambda: 1000)
    assert host.as_root(["mke2fs"])[0] == "unshare"
    assert host.as_root(["mke2fs"])[-1] == "mke2fs"


def test_a_tree_that_is_not_there_is_removed(tmp_path):
    host.remove_tree(tmp_path / "nothing")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "file").touch(mode=stat.S_IRUSR)
    host.remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_ends_the_program_and_all_it_started():
    program = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    children = []

    def interrupt(line):
        children.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        host.run([sys.executable, "-c", program], what="x", on_line=interrupt)
    deadline_s = time.monotonic() + 10
    # It becomes a child of init, which reaps it; until then it is a zombie.
    while (file := Path(f"/proc/{children[0]}/stat")).exists() and file.read_text().split(")")[1].split()[0] != "Z":
        assert time.monotonic() < deadline_s


def test_what_is_isolated_dies_with_us(monkeypatch):
    monkeypatch.setattr(host.os, "geteuid", lambda: 1000)
    assert host.isolated(["mmdebstrap"]) == ["setpriv", "--pdeathsig", "KILL", "mmdebstrap"]


def test_a_tree_in_which_something_is_mounted_is_left_alone(tmp_path, monkeypatch):
    mounts = f"36 35 98:0 / {tmp_path}/tree/dev rw,noatime master:1 - devtmpfs udev rw\n"
    monkeypatch.setattr(host.Path, "read_text", lambda self: mounts)
    (tmp_path / "tree" / "dev").mkdir(parents=True)
    with pytest.raises(HostError, match="something is mounted in it"):
        host.remove_tree(tmp_path / "tree")
    assert (tmp_path / "tree" / "dev").is_dir()
