#!/usr/bin/env python3
"""Looks up random rows of an SQLite file, by reads or mapped into memory.

::

    lookups.py make FILE MEGABYTES        make the file
    lookups.py warm FILE                  read it once, so that it is cached
    lookups.py look FILE read|mmap SEED   look rows up until ended, print how many a second
"""

import random
import sqlite3
import sys
import time
from pathlib import Path

ROW_BYTES = 900
"""Four rows fill a page of 4 KiB."""

EVERY_S = 5.0


def make(file: str, megabytes: int) -> None:
    """Make a table of rows with random content."""
    noise = random.Random(1).randbytes(1 << 20)
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, content BLOB)")
        rows = ((number, noise[number : number + ROW_BYTES]) for number in range(megabytes * 1_000_000 // 1024))
        database.executemany("INSERT INTO rows VALUES (?, ?)", rows)
    database.close()


def warm(file: str) -> None:
    """Read the file once, in order."""
    with Path(file).open("rb", buffering=0) as stream:
        while stream.read(1 << 20):
            pass


def look(file: str, how: str, seed: str) -> None:
    """Look rows up and print how many a second."""
    database = sqlite3.connect(f"file:{file}?immutable=1", uri=True)  # no lock and no look at the file for each
    database.execute(f"PRAGMA mmap_size = {Path(file).stat().st_size if how == 'mmap' else 0}")
    database.execute("PRAGMA cache_size = -1000")  # KiB: all else is the kernel's page cache
    (count,) = database.execute("SELECT max(id) + 1 FROM rows").fetchone()
    choose = random.Random(seed)
    while True:
        done, began_s = 0, time.monotonic()
        while (took_s := time.monotonic() - began_s) < EVERY_S:
            database.execute("SELECT content FROM rows WHERE id = ?", (choose.randrange(count),)).fetchone()
            done += 1
        print(f"{done / took_s:.1f} lookups/s", flush=True)


if __name__ == "__main__":
    {
        "make": lambda: make(sys.argv[2], int(sys.argv[3])),
        "warm": lambda: warm(sys.argv[2]),
        "look": lambda: look(*sys.argv[2:5]),
    }[sys.argv[1]]()
