"""Miss-ratio curves from sampled accesses, and what to do with them. Pure: no await, no I/O.

See ``docs/curves-estimation.md``.
"""
