"""The guest's packages come from the mirror that the host's apt uses for Debian's main archive, and from no other."""

import pytest

from qmpalloc.qemu import mirror

UPDATED = """\
Packages|https://deb.mirror.example/debian-security/|trixie-security|main|Debian|Debian-Security
Packages|https://deb.mirror.example/debian/|trixie-updates|main|Debian|Debian
Translations|https://deb.mirror.example/debian/|trixie|main|Debian|Debian
Packages|https://tools.vendor.example/apt/|trixie|main|Vendor|Vendor tools
Packages|https://deb.mirror.example/debian/|trixie|contrib|Debian|Debian
Packages|https://deb.mirror.example/debian/|trixie|main|Debian|Debian
"""
# Before the first apt-get update apt leaves what it does not know as it was written.
NEVER_UPDATED = """\
Packages|http://mirror.example/debian-security/|bookworm-security|main|$(ORIGIN)|$(LABEL)
Packages|http://mirror.example/debian/|bookworm|main|$(ORIGIN)|$(LABEL)
"""
UBUNTU = "Packages|http://archive.mirror.example/ubuntu/|noble|main|Ubuntu|Ubuntu\n"
CDROM = "Packages|cdrom:[Debian 13]/|trixie|main|Debian|Debian\n"
LOCAL = "Packages|file:/srv/debian/|stable|main|Debian|Debian\n"
SNAPSHOT = "Packages|https://snapshot.mirror.example/archive/debian/20260101T000000Z/|sid|main|Debian|Debian\n"


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        (UPDATED, "https://deb.mirror.example/debian"),
        (NEVER_UPDATED, "http://mirror.example/debian"),
        (UBUNTU, None),
        (CDROM, None),
        (LOCAL, "file:/srv/debian"),
        (SNAPSHOT, "https://snapshot.mirror.example/archive/debian/20260101T000000Z"),
        (UBUNTU + LOCAL, "file:/srv/debian"),
        ("", None),
        ("not|what|apt\nprints", None),
    ],
)
def test_the_chosen_mirror(targets, chosen):
    assert mirror.choose_mirror(mirror.parse_index_targets(targets)) == chosen


def test_an_archive_known_to_be_debians_goes_before_one_that_is_not_known_yet():
    targets = mirror.parse_index_targets(NEVER_UPDATED + UPDATED)
    assert mirror.choose_mirror(targets) == "https://deb.mirror.example/debian"


def test_only_what_a_mirror_needs_to_be_reached_is_taken_from_apts_settings():
    dump = """\
APT::Architecture "amd64";
Acquire::http::Proxy "http://proxy.example:3142/";
Acquire::http::Proxy::deb.mirror.example "DIRECT";
Acquire::https::Proxy "";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
"""
    assert mirror.parse_transfer_options(dump) == [
        'Acquire::http::Proxy "http://proxy.example:3142/";',
        'Acquire::http::Proxy::deb.mirror.example "DIRECT";',
        'Acquire::Check-Valid-Until "false";',
    ]


def test_a_host_without_apt_has_no_mirror(monkeypatch):
    monkeypatch.setattr(mirror, "find_program", lambda name: None)
    assert mirror.host_mirror() is None
    assert mirror.host_transfer_options() == []
