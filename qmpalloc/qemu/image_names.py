"""Which recipes name which images: kept beside each image, so that pruning spares what somebody still wants.

``NAME.recipes`` beside the image ``NAME`` has a line of JSON for every file that an image was made or used for: a
configuration or an experiment; the empty text stands for flags of ``qmpalloc image build``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from qmpalloc.errors import ConfigError, HostError

SUFFIX = ".recipes"

DirectoriesOf = Callable[[Path], Collection[Path]]
"""The directories of the images that a file names now; raises `ConfigError` when it cannot be used."""


def note_name(directory: Path, file: str) -> None:
    """Keep that a recipe in `file` names the image in `directory`; empty for one that was given by flags.

    Raises:
        HostError: It cannot be written.
    """
    if file in recipe_files(directory):
        return
    place = _place(directory)
    try:
        with place.open("ab") as names:
            names.write(msgspec.json.encode(file) + b"\n")
    except OSError as error:
        raise HostError(f"{place} cannot be written: {error.strerror}") from error


def recipe_files(directory: Path) -> list[str]:
    """Return the files whose recipes have named an image; the empty one stands for flags."""
    try:
        lines = _place(directory).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"{_place(directory)} cannot be read: {error.strerror}") from error
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=str))
        except msgspec.DecodeError:  # cut off when it was written
            continue
    return list(dict.fromkeys(found))


def forget(directory: Path) -> None:
    """Remove what is known of who names an image."""
    _place(directory).unlink(missing_ok=True)


def named_by(directory: Path, directories_of: DirectoriesOf) -> Iterator[str]:
    """Yield the files that still name the image in `directory`, or that cannot be read now, which might."""
    for name in recipe_files(directory):
        file = Path(name)
        if not name or not file.is_file():
            continue
        try:
            if directory in directories_of(file):
                yield name
        except ConfigError:
            yield f"{name}, which cannot be used now"


def _place(directory: Path) -> Path:
    return directory.with_name(directory.name + SUFFIX)
