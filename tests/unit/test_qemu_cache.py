"""What is cached is there completely or not at all, and is made once, whoever asks."""

import threading

import pytest

from qmpalloc.errors import HostError
from qmpalloc.qemu import cache


def write(text):
    def make(partial):
        (partial / "file").write_text(text)

    return make


def test_it_is_made_once(tmp_path):
    target = tmp_path / "images" / "a"
    assert cache.obtain(target, write("first")) == target
    cache.obtain(target, write("second"))
    assert (target / "file").read_text() == "first"


def test_a_failure_leaves_nothing(tmp_path):
    def fail(partial):
        (partial / "half").write_text("x")
        raise HostError("no room")

    with pytest.raises(HostError, match="no room"):
        cache.obtain(tmp_path / "a", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".a.lock"]


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupt(partial):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.obtain(tmp_path / "a", interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [".a.lock"]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    abandoned = tmp_path / ".a.x7.partial"
    (abandoned / "tree").mkdir(parents=True)
    other = tmp_path / ".b.x7.partial"
    other.mkdir()
    cache.obtain(tmp_path / "a", write("x"))
    assert not abandoned.exists()
    assert other.exists()


def test_it_can_be_replaced(tmp_path):
    cache.obtain(tmp_path / "a", write("old"))
    cache.obtain(tmp_path / "a", write("new"), replace=True)
    assert (tmp_path / "a" / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.lock", "a"]


def test_a_failed_replacement_keeps_the_old(tmp_path):
    def fail(partial):
        raise HostError("no room")

    cache.obtain(tmp_path / "a", write("old"))
    with pytest.raises(HostError):
        cache.obtain(tmp_path / "a", fail, replace=True)
    assert (tmp_path / "a" / "file").read_text() == "old"


def test_a_second_builder_waits_and_finds_it_made(tmp_path):
    target, in_make, go_on, said = tmp_path / "a", threading.Event(), threading.Event(), []

    def slow(partial):
        in_make.set()
        assert go_on.wait(10)
        (partial / "file").write_text("first")

    def report(line):
        said.append(line)
        go_on.set()

    first = threading.Thread(target=cache.obtain, args=(target, slow))
    first.start()
    assert in_make.wait(10)
    # The lock belongs to the open file, so it also holds between two threads.
    cache.obtain(target, write("second"), report=report)
    first.join()
    assert said == ["waiting: another qmpalloc is making a"]
    assert (target / "file").read_text() == "first"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("/var/cache/me", "/var/cache/me/qmpalloc"), ("", "/home/me/.cache/qmpalloc"), ("x", "/home/me/.cache/qmpalloc")],
)
def test_the_cache_is_where_xdg_says(monkeypatch, value, expected):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert str(cache.cache_dir()) == expected


def test_a_place_that_cannot_be_written_is_named_with_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="Not a directory") as caught:
        cache.obtain(tmp_path / "file" / "images" / "a", write("x"))
    assert "XDG_CACHE_HOME" in caught.value.hint
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(HostError, match="cannot be written by you"):
        cache.obtain(tmp_path / "a", write("x"))
