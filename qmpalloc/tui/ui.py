"""What the person at the keyboard has done to the view, which is not part of the record; and what the keys mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

PAGE_ROWS = 8


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
        selected: Index of the selected guest.
        confirming: The return to baseline waits for its second key.
        large_curve: The selected guest's curve gets the room of the guests' details.
        quitting: ``q`` was pressed.
        reloads: The configuration can be read again.
        only_quit: The keys can end the run, and nothing else of it.
        keyboard: False when there is no terminal to read keys from.
        replay: What is replayed, for example ``replay x4``; empty when live.
    """

    selected: int = 0
    confirming: bool = False
    large_curve: bool = False
    quitting: bool = False
    reloads: bool = False
    only_quit: bool = False
    keyboard: bool = True
    replay: str = ""

    @property
    def shown(self) -> tuple[int, bool, bool, bool, str]:
        """All that a frame shows of it."""
        return self.selected, self.confirming, self.large_curve, self.quitting, self.replay


def press(key: str, ui: Ui, controls: Controls, *, guests: int, may_control: bool = True) -> None:
    """Do what `key` means.

    Args:
        key: A name from `qmpalloc.tui.keys.Decoder`.
        ui: Changed in place.
        controls: Called for keys that act on the run.
        guests: Their number, to bound the selection.
        may_control: False in a mode that changes no guest.
    """
    if ui.confirming:
        ui.confirming = False
        if key == "y":
            controls.return_to_baseline()
        return
    steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page-up": -PAGE_ROWS, "page-down": PAGE_ROWS}
    steps |= {"home": -guests, "g": -guests, "end": guests, "G": guests}
    if key in steps:
        ui.selected = min(max(ui.selected + steps[key], 0), max(guests - 1, 0))
    elif key == "c":
        ui.large_curve = not ui.large_curve
    elif key == "q":
        ui.quitting = True
        controls.quit()
    elif key == "p" and (may_control or ui.replay):
        controls.toggle_pause()
    elif key == "r" and may_control and isinstance(controls, Reloads):
        controls.reload()
    elif key == "b" and may_control and not ui.replay:
        ui.confirming = True
