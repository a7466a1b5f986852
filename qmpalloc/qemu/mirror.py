"""Which package mirror the host's own apt uses: the guest's packages come from there. No mirror is named here."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from msgspec import Struct

from qmpalloc.qemu.host import find_program

TARGET_FORMAT = "$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(LABEL)"
"""What is asked of ``apt-get indextargets``; a field that apt does not know yet stays as it is written here."""

RELEASES = frozenset({
    "bullseye", "bookworm", "trixie", "forky", "duke", "sid",
    "oldoldstable", "oldstable", "stable", "testing", "unstable",
})  # fmt: skip
"""Names of Debian's main archive in a source; ``-security`` and ``-updates`` are other archives."""

SCHEMES = ("http://", "https://", "file:", "copy:", "mirror+", "tor+")
"""Transports that also work for a guest's image; a CD-ROM does not."""

# Of the host's apt settings, what a mirror may need to be reachable and accepted at all.
TRANSFER_OPTIONS = (
    "Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::ftp::Proxy",
    "Acquire::Check-Valid-Until", "Acquire::Check-Date",
)  # fmt: skip


class IndexTarget(Struct, frozen=True):
    """One line of ``apt-get indextargets``."""

    created_by: str
    uri: str
    release: str
    component: str
    origin: str
    label: str


def parse_index_targets(text: str) -> list[IndexTarget]:
    """Return the targets in the output of ``apt-get indextargets --format TARGET_FORMAT``.

    Before the first ``apt-get update`` origin and label are unknown; they are empty then.
    """
    targets = []
    for line in text.splitlines():
        fields = ["" if field.startswith("$(") else field.strip() for field in line.split("|")]
        if len(fields) == len(IndexTarget.__struct_fields__):
            targets.append(IndexTarget(*fields))
    return targets


def choose_mirror(targets: Iterable[IndexTarget]) -> str | None:
    """Return the URI of the Debian main archive among apt's sources, or None when there is none.

    An archive that says it is Debian's is preferred to one whose origin is not known yet. The packages are verified
    with Debian's keys in any case, so a wrong choice fails and does no harm.
    """

    def usable(target: IndexTarget) -> bool:
        return (
            target.created_by in ("Packages", "")
            and target.component == "main"
            and target.release in RELEASES
            and target.uri.startswith(SCHEMES)
        )

    candidates = [target for target in targets if usable(target)]
    known = [target for target in candidates if (target.origin, target.label) == ("Debian", "Debian")]
    unknown = [target for target in candidates if not target.origin]
    chosen = next(iter(known or unknown), None)
    return None if chosen is None else chosen.uri.rstrip("/")


def host_mirror() -> str | None:
    """Return the mirror of the host's apt, or None on a host that is not Debian."""
    return choose_mirror(parse_index_targets(_output(["apt-get", "indextargets", "--format", TARGET_FORMAT])))


def parse_transfer_options(dump: str) -> list[str]:
    """Return the proxy and validity settings in the output of ``apt-config dump``, as lines of an apt.conf."""
    return [
        line
        for line in dump.splitlines()
        if line.split(" ", 1)[0].startswith(TRANSFER_OPTIONS) and not line.endswith(' "";')
    ]


def host_transfer_options() -> list[str]:
    """Return the host's apt settings without which its mirror may not be reachable."""
    return parse_transfer_options(_output(["apt-config", "dump"]))


def _output(argv: list[str]) -> str:
    """Return what a program prints; nothing when it is missing or fails, as on a host without apt."""
    program = find_program(argv[0])
    if program is None:
        return ""
    return subprocess.run([program, *argv[1:]], capture_output=True, text=True, check=False, errors="replace").stdout
