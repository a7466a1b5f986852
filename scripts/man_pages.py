"""Write a manual page for each command, from its help: scripts/man_pages.py DIRECTORY. Needs the group `docs`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click_man.core import write_man_pages

from qmpalloc import __version__
from qmpalloc.cli import COMMANDS, main


def write(directory: Path) -> None:
    """Write ``qmpalloc.1``, ``qmpalloc-run.1`` and so on."""
    context = click.Context(main)
    for name, entry in COMMANDS.items():
        command = main.get_command(context, name)
        assert command is not None
        command.short_help = entry.help
        main.add_command(command, name)  # pages are made of what is there
    main.short_help = "share one host's memory among raw QEMU guests"
    directory.mkdir(parents=True, exist_ok=True)
    write_man_pages("qmpalloc", main, version=__version__, target_dir=str(directory))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
