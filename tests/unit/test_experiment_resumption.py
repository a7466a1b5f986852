"""What is other when an experiment goes on: what makes its arms incomparable, and what is only told."""

import msgspec
import pytest

from qmpalloc.experiment.store.records import Manifest
from qmpalloc.experiment.store.resumption import Change, at_time, changes

THEN = Manifest(
    name="x", file="/x.toml", scale="1", arms=("static",), repeats=1, command="", created_wall=0.0,
    accelerator={"g1": "tcg"}, images={"g1": "6.12 aaaa"}, versions={"qemu": "QEMU 8", "qmpalloc": "1", "trio": "0.31"},
    host={"cpus": 2, "machine": "x86_64", "kernel": "6.1"}, footprints={},
)  # fmt: skip


def test_nothing_is_other():
    assert changes(THEN, msgspec.structs.replace(THEN, command="else", created_wall=9.0)) == ()


@pytest.mark.parametrize(
    ("field", "now", "text", "decisive"),
    [
        ("images", {"g1": "6.12 bbbb"}, "image of g1 is 6.12 bbbb (was 6.12 aaaa)", True),
        ("accelerator", {"g1": "kvm"}, "accelerator of g1 is kvm (was tcg)", True),
        ("versions", THEN.versions | {"qemu": "QEMU 9"}, "qemu is QEMU 9 (was QEMU 8)", True),
        ("versions", THEN.versions | {"qmpalloc": "2"}, "qmpalloc is 2 (was 1)", True),
        ("versions", THEN.versions | {"trio": "0.32"}, "trio is 0.32 (was 0.31)", False),
        ("versions", {"qemu": "QEMU 8", "qmpalloc": "1"}, "trio is none (was 0.31)", False),
        ("host", THEN.host | {"cpus": 4}, "host's cpus is 4 (was 2)", True),
        ("host", THEN.host | {"machine": "aarch64"}, "host's machine is aarch64 (was x86_64)", True),
        ("host", THEN.host | {"kernel": "6.2"}, "host's kernel is 6.2 (was 6.1)", False),
    ],
)
def test_what_is_other_is_told(field, now, text, decisive):
    assert changes(THEN, msgspec.structs.replace(THEN, **{field: now})) == (Change(text, decisive),)


def test_a_change_is_kept_with_its_time():
    assert at_time("resumed: trio is 2", 0.0) == "1970-01-01 00:00 UTC: resumed: trio is 2"
