"""Allocates memory in steps, prints how long each took, and holds it; brought into a guest by ``program-grows.toml``.

::

    python3 grows.py MEGABYTES SECONDS
"""

import sys
import time

STEP_BYTES = 10_000_000
PAGE_BYTES = 4096


def main() -> None:
    """Grow, hold, end."""
    megabytes, hold_s = int(sys.argv[1]), float(sys.argv[2])
    began_s, held = time.monotonic(), []
    for _ in range(megabytes * 1_000_000 // STEP_BYTES):
        step_s = time.monotonic()
        memory = bytearray(STEP_BYTES)
        for offset in range(0, STEP_BYTES, PAGE_BYTES):  # zeroed memory is not there until it is touched
            memory[offset] = 1
        held.append(memory)
        print(f"step took {(time.monotonic() - step_s) * 1e3:.1f} ms", flush=True)
    print(f"all took {time.monotonic() - began_s:.2f} s", flush=True)
    time.sleep(hold_s)


if __name__ == "__main__":
    main()
