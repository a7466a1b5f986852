"""Experiments: arms (a policy with its settings) are compared under the same loads, on guests booted anew for each run.

`spec` says what is run, `run` runs it, `store` keeps what happened, `analysis` finds what it says, `report` tells it.
The format of the files: ``docs/experiments.md``.
"""
