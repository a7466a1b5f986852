#!/usr/bin/env python3
"""Makes so many files of 16 KiB in eight directories of ``tree``, on the data disk."""

import random
import sys
from pathlib import Path

FILE_BYTES = 16 * 1024
DIRECTORIES = 8

noise = random.Random(1)
for number in range(int(sys.argv[1])):
    file = Path(f"tree/{number % DIRECTORIES}/{number // 100}/{number}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(noise.randbytes(FILE_BYTES))
