"""Policies: one module each, pure functions from a snapshot to a decision. See `qmpalloc.model.Policy`."""

from qmpalloc.policy.registry import NAMES, load

__all__ = ["NAMES", "load"]
