"""Sweeps: a grid of policies, settings, loads, sizes and seeds, run on one machine or on many by Dask.

`spec` says what is run, `model` runs a task in the model, `guests` runs one on real guests, `engine` hands tasks to
Dask's workers, `store` keeps what they answer, `report` tells it. The format of the file: ``docs/sweeps.md``.
"""
