"""``python -m qmpalloc`` is ``qmpalloc``."""

from qmpalloc.cli import main

if __name__ == "__main__":
    main()
