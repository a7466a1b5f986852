"""What a configuration that is read again may change."""

from pathlib import Path

import pytest

from qmpalloc import config
from qmpalloc.control.roster import compare
from qmpalloc.errors import ConfigError

HEAD = '[host]\nbudget = "4GiB"\n[control]\ninterval = "5s"\n[policy]\nname = "paper"\nstep = "64MiB"\n'
GUEST = """
[[guest]]
name = "{0}"
monitor = "{0}.qmp"
agent = "{0}.agent"
floor = "1GiB"
cap = "2GiB"
baseline = "1GiB"
"""


def parse(text):
    return config.parse(text, file=Path("/lab/lab.toml"))


OLD = HEAD + GUEST.format("a") + GUEST.format("b")


def test_guests_that_come_go_and_change():
    new = HEAD + GUEST.format("c") + GUEST.format("b").replace("2GiB", "3GiB")
    changes = compare(parse(OLD), parse(new))
    assert [guest.name for guest in changes.added] == ["c"]
    assert changes.removed == ("a",)
    assert {name: (guest.name, guest.cap) for name, guest in changes.changed.items()} == {"b": ("b", 3 << 30)}
    assert changes.renamed == {}


def renamed(**names):
    """The guests of OLD, each with its sockets, by other names."""
    text = OLD
    for old, new in names.items():
        text = text.replace(f'name = "{old}"', f'name = "new {new}"')
    return parse(text.replace('"new ', '"'))


@pytest.mark.parametrize("names", [{"a": "z"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c"}])
def test_a_guest_is_known_by_its_sockets_whatever_it_is_called(names):
    changes = compare(parse(OLD), renamed(**names))
    assert (changes.added, changes.removed, changes.renamed) == ((), (), names)


def test_another_path_to_the_same_sockets_is_no_other_guest(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    before, after = (config.parse(OLD.replace('"a.', f'"{place}/a.'), file=tmp_path / "x") for place in (".", "link"))
    changes = compare(before, after)
    assert (changes.added, changes.removed, changes.renamed) == ((), (), {})
    assert changes.changed["a"].monitor.endswith("/link/a.qmp")


def test_nobody_takes_the_name_of_a_guest_that_leaves():
    new = HEAD + GUEST.format("b").replace('name = "b"', 'name = "a"')
    with pytest.raises(ConfigError, match=r"guest\[0\].monitor: cannot change") as caught:
        compare(parse(OLD), parse(new))
    assert "give the guest another name" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('"5s"', '"6s"', "control"),
        ('"64MiB"', '"65MiB"', "policy"),
        ('"paper"\nstep = "64MiB"', '"static"', "policy"),
        ("a.qmp", "z.qmp", "guest[0].monitor"),
        ("b.agent", "z.agent", "guest[1].agent"),
        ('"b"\nmonitor = "b.qmp"', '"z"\nmonitor = "z.qmp"', "guest[1].monitor"),
        ('"b"\nmonitor = "b.qmp"\nagent = "b.agent"', '"z"\nmonitor = "b.qmp"\nagent = "z.agent"', "guest[1].agent"),
    ],
)
def test_what_a_run_cannot_change_is_refused_by_name(old, new, key):
    with pytest.raises(ConfigError) as caught:
        compare(parse(OLD), parse(OLD.replace(old, new)))
    assert caught.value.key == key
    assert "start it again" in caught.value.hint
