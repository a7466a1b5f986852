"""Running experiments on real guests: boots them, gives them their loads, controls them, and keeps what happened.

What an experiment is, and what its results say, is in `qmpalloc.experiment`, which boots nothing.
"""
