"""Where the work of programs lies is said as far as their commands tell."""

from pathlib import Path

import pytest

from qmpalloc.experiment.spec import parsing
from qmpalloc.experiment.spec.places import Disk, disk_of, places, warnings
from qmpalloc.experiment.spec.program import ProgramPhase

TEXT = """
[experiment]
name = "try"
budget = "1GiB"
[[guest]]
name = "g1"
memory = "1GiB"
floor = "256MiB"
cap = "1GiB"
baseline = "512MiB"
[[guest.phase]]
command = ["work", "/data/rows"]
files = { rows = "16MiB" }
duration = "60s"
[[arm]]
name = "static"
policy = "static"
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["fio", "--directory=/data/fio"], {"/data/fio": Disk.DATA}),
        (["sh", "-c", "cat /data/a > /dev/null; ls /var/lib/x"], {"/data/a": Disk.DATA, "/var/lib/x": Disk.ROOT}),
        (["/usr/bin/work", "--unix", "/run/x.sock"], {"/run/x.sock": Disk.MEMORY}),
        (["wrk", "http://127.0.0.1:80/page", "a/b", "./c/d", "3/4"], {}),
        (["work", "/database"], {"/database": Disk.ROOT}),
        (["sh", "-c", "cat /srv/a/* && work --of=/srv/a"], {"/srv/a": Disk.ROOT}),
    ],
)
def test_paths_are_told_from_other_words(words, found):
    assert {place.path: place.disk for place in places(ProgramPhase(command=tuple(words)))} == found


def test_directories_of_the_data_disk_and_of_memory():
    assert [disk_of(path) for path in ("/data", "/data/x", "/datax", "/dev/shm/x")] == [
        Disk.DATA,
        Disk.DATA,
        Disk.ROOT,
        Disk.MEMORY,
    ]


def found(*changes, directory=Path("/x")):
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return list(warnings(parsing.parse(text, file=directory / "e.toml")))


def test_work_on_the_data_disk_needs_no_word():
    assert found() == []


def test_work_elsewhere_is_said():
    (on_root,) = found(('"/data/rows"]', '"/data/rows", "/var/lib/x"]'))
    assert on_root.startswith("guest g1, phase1: /var/lib/x is on the root disk, which the host caches")
    (in_memory,) = found(('"/data/rows"]', '"/data/rows", "/dev/shm/x"]'))
    assert "/dev/shm/x is on no disk, but in memory" in in_memory


def test_data_that_nothing_names_is_said(tmp_path):
    (said,) = found(('"/data/rows"]', '"rows"]'))
    assert "it has data in /data, but nothing in it names that directory" in said
    (tmp_path / "work.sh").write_text("cat /data/rows")
    change = ('"/data/rows"]', '"rows"]\ncopy = ["work.sh"]')
    assert found(change, directory=tmp_path) == []


def test_where_the_paths_of_a_users_own_guest_lie_is_not_guessed():
    attach = 'attach = { monitor = "a", second_monitor = "b", agent = "c" }'
    assert found(('baseline = "512MiB"', f'baseline = "512MiB"\n{attach}'), ('"/data/rows"]', '"/var/lib/x"]')) == []
