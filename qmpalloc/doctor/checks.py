"""One line of a diagnosis."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Verdict(StrEnum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"  # control works, but less well or less safely
    FAIL = "fail"  # control cannot work


class Check(Struct, frozen=True, kw_only=True):
    """The outcome of one check.

    Attributes:
        subject: ``host`` or the guest's name.
        name: What was checked.
        verdict: The outcome.
        detail: What was found. Text from a guest in it is printable.
        todo: What to do; never empty unless the verdict is OK.
    """

    subject: str
    name: str
    verdict: Verdict
    detail: str
    todo: str = ""


def passed(subject: str, name: str, detail: str) -> Check:
    """Return a check that went well."""
    return Check(subject=subject, name=name, verdict=Verdict.OK, detail=detail)


def warned(subject: str, name: str, detail: str, todo: str) -> Check:
    """Return a check that leaves a weakness."""
    return Check(subject=subject, name=name, verdict=Verdict.WARN, detail=detail, todo=todo)


def failed(subject: str, name: str, detail: str, todo: str) -> Check:
    """Return a check that rules control out."""
    return Check(subject=subject, name=name, verdict=Verdict.FAIL, detail=detail, todo=todo)
