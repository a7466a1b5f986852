"""Check a host and its guests for everything that control needs, and say what to do about what is missing."""

from qmpalloc.doctor.checks import Check, Verdict
from qmpalloc.doctor.guests import check_guest
from qmpalloc.doctor.host import check_host

__all__ = ["Check", "Verdict", "check_guest", "check_host"]
