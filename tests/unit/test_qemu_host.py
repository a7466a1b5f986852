"""A program that is missing or fails is named with what to do; what it prints reaches the terminal cleaned."""

import stat
import sys

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
