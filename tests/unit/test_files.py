"""What runs leave is for its owner only, and is never written through a link that lies in its place."""

import os
import stat

import pytest

from qmpalloc import files
from qmpalloc.errors import HostError


@pytest.fixture(autouse=True)
def umask(monkeypatch):
    """An umask that leaves all rights to read, and what `follow_umask` does undone."""
    monkeypatch.setattr(files, "_group_and_others", 0)
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def make_all(directory):
    """Make something by every function; return the directories and the files."""
    files.make_directory(directory / "a" / "b")
    files.create(directory / "a" / "new").close()
    files.append(directory / "a" / "log", b"1")
    files.write_whole(directory / "a" / "whole", b"1")
    return [directory / "a", directory / "a" / "b"], [directory / "a" / name for name in ("new", "log", "whole")]


def test_directories_and_files_are_for_their_owner_only(tmp_path):
    directories, made = make_all(tmp_path)
    assert {mode(path) for path in directories} == {0o700}
    assert {mode(path) for path in made} == {0o600}


def test_who_asks_for_it_gets_what_the_umask_says(tmp_path):
    files.follow_umask()
    directories, made = make_all(tmp_path)
    assert {mode(path) for path in directories} == {0o755}
    assert {mode(path) for path in made} == {0o644}


def test_a_directory_that_exists_stays_as_it_is(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o755)
    files.make_directory(tmp_path / "mine")
    assert mode(tmp_path / "mine") == 0o755


@pytest.fixture
def planted(tmp_path):
    """A link to a file that is not to be changed, at the name that something is to be written to."""
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "name").symlink_to("victim")
    return tmp_path


def test_a_link_is_replaced_and_not_written_through(planted):
    files.write_whole(planted / "name", b"new")
    assert (planted / "victim").read_bytes() == b"precious"
    assert not (planted / "name").is_symlink()
    assert (planted / "name").read_bytes() == b"new"


def test_nor_is_one_at_the_name_of_the_scratch_file(planted):
    (planted / f".whole.{os.getpid()}").symlink_to("victim")
    files.write_whole(planted / "whole", b"new")
    assert (planted / "victim").read_bytes() == b"precious"
    assert (planted / "whole").read_bytes() == b"new"
    assert {path.name for path in planted.iterdir()} == {"victim", "name", "whole"}


def test_a_link_is_neither_appended_to_nor_taken_for_a_new_file(planted):
    for write in (lambda path: files.append(path, b"new"), files.create):
        with pytest.raises(OSError, match="name"):
            write(planted / "name")
    assert (planted / "victim").read_bytes() == b"precious"


def test_what_cannot_be_written_whole_leaves_the_old_and_no_scratch_file(tmp_path, monkeypatch):
    def refuse(old, new):
        raise OSError(28, "No space left on device")

    files.write_whole(tmp_path / "x", b"old")
    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(HostError, match="x cannot be written: No space left") as caught:
        files.write_whole(tmp_path / "x", b"new")
    assert "make room" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"
