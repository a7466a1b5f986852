"""The collector: counts page-cache accesses and misses inside a guest, and writes the counters file.

It runs in the guest with the distribution's Python and bcc, and imports nothing of ``qmpalloc``. It has two stages in
one process: `collector` compiles and attaches ``program.c`` with bcc, which takes more than 100 MB, then becomes
`reader` by ``exec``, which keeps the programs by their descriptors and stays below 16 MB. So `reader` and what it
imports (`bpf`, `counters_file`, `procfs`) use as little of the standard library as they can.
"""
