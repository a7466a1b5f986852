"""``qmpalloc plan``: one decision with its reasons, carried out by nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qmpalloc.cli.options import config_argument
from qmpalloc.cli.streams import print_json, table_console
from qmpalloc.errors import QmpallocError, UnreachableError

if TYPE_CHECKING:
    from qmpalloc.config import Config
    from qmpalloc.events import AnyEvent, Decided, Faulted


@click.command()
@config_argument
@click.option("--json", "as_json", is_flag=True, help="The snapshot and the decision as JSON.")
def plan(config: Config, as_json: bool) -> None:
    """Observe the guests of CONFIG for one interval and print what the policy would do."""
    from qmpalloc.cli.signals import run_until_signal

    decided, troubles, failure = run_until_signal(_first_decision, config)
    if as_json:
        print_json(decided)
    else:
        _show(config, decided, troubles)
    if failure is not None:
        raise QmpallocError(failure.message, hint=failure.hint)
    if not any(guest.decidable for guest in decided.snapshot.guests):
        raise UnreachableError(
            "no guest is observed, so that nothing could be decided",
            address=config.file,
            hint=f"qmpalloc doctor {config.file}",
        )


async def _first_decision(config: Config) -> tuple[Decided, dict[str, str], Faulted | None]:
    """Return the decision, what is wrong with each guest, and what was wrong with the policy."""
    from qmpalloc.control.controller import Controller
    from qmpalloc.events import Decided, Faulted, SampleRejected
    from qmpalloc.policy import load

    found: list[Decided] = []
    troubles: dict[str, str] = {}
    failure: Faulted | None = None

    def sink(event: AnyEvent) -> None:
        nonlocal failure
        match event:
            case Faulted(guest=None, kind="policy"):
                failure = event
            case Decided():
                found.append(event)
                controller.quit()
            case SampleRejected():
                if event.message not in troubles.get(event.guest, ""):  # else a fault says the same, and what to do
                    troubles[event.guest] = event.message
            case Faulted(guest=str(guest)):
                troubles[guest] = f"{event.message} ({event.hint})" if event.hint else event.message
            case _:
                pass

    controller = Controller(config, load(config.policy, config.policy_settings, file=config.file), sink, mode="dry-run")
    await controller.run()
    if not found:
        raise UnreachableError("interrupted before a decision", address=config.file)
    return found[0], troubles, failure


def _show(config: Config, decided: Decided, troubles: dict[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from qmpalloc.units import format_count, format_size

    def number(value: float | None) -> str:
        return "?" if value is None else format_count(value)

    def size(value: int) -> str:
        return format_size(value) if value else "?"

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("guest", "state", "now", "target", "floor", "cap", "hits", "misses", "e", "why"):
        table.add_column(column, justify="left" if column in {"guest", "state", "why"} else "right")
    for guest, verdict in zip(decided.snapshot.guests, decided.decision.guests, strict=True):
        why = verdict.reason if guest.decidable or guest.name not in troubles else troubles[guest.name]
        sizes = [
            size(value) for value in (guest.actual_bytes, verdict.target_bytes, guest.floor_bytes, guest.cap_bytes)
        ]
        counts: list[Any] = [number(guest.hits), number(guest.misses), number(verdict.terms.get("e"))]
        table.add_row(guest.name, guest.state.value, *sizes, *counts, Text(f"{verdict.limiter}: {why}"))
    console = table_console()
    console.print(table)
    budget = f"{format_size(decided.committed_bytes)} of {format_size(decided.snapshot.budget_bytes)} committed"
    console.print(Text(f"policy {config.policy}: {decided.decision.summary}; {budget}; nothing was changed"))
