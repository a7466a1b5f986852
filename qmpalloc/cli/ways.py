"""Files that say how programs are run in guests: configurations, and experiments with guests of the user's own."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from qmpalloc import config
from qmpalloc.config.schema import called
from qmpalloc.config.toml import read_tables, read_text
from qmpalloc.errors import ConfigError
from qmpalloc.qemu.channels import Way, ways_into


class Ways(Struct, frozen=True):
    """The guests of a file, and the ways into them."""

    file: str
    guests: tuple[Way, ...]

    def into(self, name: str) -> Way:
        """Return the way into the guest called `name`.

        Raises:
            ConfigError: There is none.
        """
        return called(name, {way.guest: way for way in self.guests}, file=self.file)


def load(path: str) -> Ways:
    """Load and validate such a file.

    Raises:
        ConfigError: There is none, it is wrong, or none of its guests is there.
    """
    file = Path(path).absolute()
    text = read_text(path, example="see {examples}/ for a configuration")
    tables = read_tables(text, file=file, brackets="a guest is a table with two brackets: [[guest]]")
    if "experiment" not in tables:
        return Ways(str(file), ways_into(config.parse(text, file=file)))
    from qmpalloc.experiment.spec.parsing import parse

    guests = tuple(
        Way(
            guest=guest.name,
            channel=guest.attach.channel,
            agent=Path(guest.attach.agent),
            counters_file=guest.attach.counters_file,
            directory=file.parent,
        )
        for guest in parse(text, file=file).guests
        if guest.attach is not None
    )
    if not guests:
        hint = "the others exist only while the experiment runs"
        raise ConfigError("no guest has [guest.attach]", file=str(file), key="guest", hint=hint)
    return Ways(str(file), guests)
