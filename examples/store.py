"""A store that keeps its values in memory and is asked for few of them; brought into guests by ``cold-store.toml``.

::

    python3 store.py MEGABYTES HOT_PERCENT SEED

Prints how many values it looks up a second, every ten seconds, for ever.
"""

import random
import sys
import time

VALUE_BYTES = 4096
PRINT_S = 10.0
BATCH = 200


def main() -> None:
    """Fill the store, then look up values among the hot ones, a batch each tenth of a second."""
    megabytes, hot_percent, seed = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    count = megabytes * 1_000_000 // VALUE_BYTES
    chance = random.Random(seed)
    # Text of which zram can make half.
    values = {key: bytearray(chance.randbytes(VALUE_BYTES // 2) + bytes(VALUE_BYTES // 2)) for key in range(count)}
    hot = max(1, count * hot_percent // 100)
    print(f"filled with {count} values", flush=True)
    total, looked_up, began_s = 0, 0, time.monotonic()
    while True:
        for _ in range(BATCH):
            total += values[chance.randrange(hot)][0]
        looked_up += BATCH
        time.sleep(0.1)
        passed_s = time.monotonic() - began_s
        if passed_s >= PRINT_S:
            print(f"{looked_up / passed_s:.1f} lookups/s", flush=True)
            looked_up, began_s = 0, time.monotonic()


if __name__ == "__main__":
    main()
