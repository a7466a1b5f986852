"""Reads files and runs programs in a guest as an experiment wants.

It runs in the guests with their distribution's Python, is shipped as one file (`qmpalloc.experiment.run.shipping`), and
imports nothing of ``qmpalloc`` but its own modules. `main` has its command line.

Every read of a load is a buffered read of one page, so that each is one access of the guest's page cache.
"""
