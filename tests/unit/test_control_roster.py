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
    assert [(guest.name, guest.cap) for guest in changes.changed] == [("b", 3 << 30)]


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('"5s"', '"6s"', "control"),
        ('"64MiB"', '"65MiB"', "policy"),
        ('"paper"\nstep = "64MiB"', '"static"', "policy"),
        ("a.qmp", "z.qmp", "guest[0].monitor"),
        ("b.agent", "z.agent", "guest[1].agent"),
    ],
)
def test_what_a_run_cannot_change_is_refused_by_name(old, new, key):
    with pytest.raises(ConfigError) as caught:
        compare(parse(OLD), parse(OLD.replace(old, new)))
    assert caught.value.key == key
    assert "start it again" in caught.value.hint
