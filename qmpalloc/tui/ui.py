"""What the person at the keyboard has done to the view, which is not part of the record; and what the keys mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Protocol, runtime_checkable

from qmpalloc.tui.order import ORDERS

PAGE_ROWS = 8
SEARCH_MAX_CHARS = 30
HELP_MOST_LINES = 30
"""The page of help can be scrolled by so many lines."""


class Controls(Protocol):
    """What the keys do. Each method returns at once; its effect shows as events."""

    def quit(self) -> None:
        """End the run as configured; asked again, the caller may hurry."""
        ...

    def toggle_pause(self) -> None:
        """Pause control, or resume it."""
        ...

    def return_to_baseline(self) -> None:
        """Return every guest to its baseline."""
        ...


@dataclass(frozen=True)
class OnlyQuit:
    """Controls that change nothing of what is shown: `quit` is what is done at the end of showing it."""

    quit: Callable[[], None]

    def toggle_pause(self) -> None:
        """Do nothing."""

    def return_to_baseline(self) -> None:
        """Do nothing."""


@runtime_checkable
class Reloads(Protocol):
    """Controls of a run whose configuration is a file that can be read again."""

    def reload(self) -> None:
        """Read the configuration again."""
        ...


@dataclass(slots=True)
class Ui:
    """State of the view.

    Attributes:
        selected: Name of the selected guest; the first that is shown when there is none of that name.
        order: How the guests are sorted, one of `qmpalloc.tui.order.ORDERS`.
        search: Only guests are shown in whose name or state this is.
        searching: Keys are letters of the search.
        help: The page that explains columns and keys is shown, scrolled by `help_top` lines.
        confirming: The return to baseline waits for its second key.
        large_curve: The selected guest's curve gets the room of the guests' details.
        quitting: ``q`` was pressed.
        reloads: The configuration can be read again.
        only_quit: The keys can end the run, and nothing else of it.
        keyboard: False when there is no terminal to read keys from.
        replay: What is replayed, for example ``replay x4``; empty when live.
    """

    selected: str = ""
    order: str = ORDERS[0]
    search: str = ""
    searching: bool = False
    help: bool = False
    help_top: int = 0
    confirming: bool = False
    large_curve: bool = False
    quitting: bool = False
    reloads: bool = False
    only_quit: bool = False
    keyboard: bool = True
    replay: str = ""

    @property
    def shown(self) -> tuple[object, ...]:
        """All that a frame shows of it."""
        return astuple(self)


def press(key: str, ui: Ui, controls: Controls, *, guests: Sequence[str], may_control: bool = True) -> None:
    """Do what `key` means.

    Args:
        key: A name from `qmpalloc.tui.keys.Decoder`.
        ui: Changed in place.
        controls: Called for keys that act on the run.
        guests: Names of those that are shown, in order.
        may_control: False in a mode that changes no guest.
    """
    # 1. Keys that answer a question or belong to a search.
    if ui.confirming:
        ui.confirming = False
        if key == "y":
            controls.return_to_baseline()
    elif ui.searching:
        _search(key, ui)
    # 2. Keys of the run.
    elif key == "q":
        ui.quitting = True
        controls.quit()
    elif key == "p" and (may_control or ui.replay):
        controls.toggle_pause()
    elif key == "r" and may_control and isinstance(controls, Reloads):
        controls.reload()
    elif key == "b" and may_control and not ui.replay:
        ui.confirming = True
    # 3. Keys of the view.
    else:
        _look(key, ui, guests)


def _look(key: str, ui: Ui, guests: Sequence[str]) -> None:
    if key in ("?", "escape"):
        ui.help, ui.help_top = key == "?" and not ui.help, 0
    elif key == "c":
        ui.large_curve = not ui.large_curve
    elif key == "s":
        ui.order = ORDERS[(ORDERS.index(ui.order) + 1) % len(ORDERS)]
    elif key == "/":
        ui.searching = True
    else:
        _select(key, ui, guests)


def _search(key: str, ui: Ui) -> None:
    ui.searching = key not in ("enter", "escape")
    if key == "escape":
        ui.search = ""
    elif key == "backspace":
        ui.search = ui.search[:-1]
    elif len(key) == 1:
        ui.search = (ui.search + key)[:SEARCH_MAX_CHARS]


def _select(key: str, ui: Ui, guests: Sequence[str]) -> None:
    steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page-up": -PAGE_ROWS, "page-down": PAGE_ROWS}
    steps |= {"home": -len(guests), "g": -len(guests), "end": len(guests), "G": len(guests)}
    if key in steps and ui.help:
        ui.help_top = min(max(ui.help_top + steps[key], 0), HELP_MOST_LINES)
    elif key in steps and guests:
        at = guests.index(ui.selected) if ui.selected in guests else 0
        ui.selected = guests[min(max(at + steps[key], 0), len(guests) - 1)]
