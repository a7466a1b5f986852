"""The page replacement that an experiment asks for is in force, or the run fails."""

from pathlib import Path

import msgspec
import pytest

from qmpalloc.errors import HostError
from qmpalloc.experiment.run.lru import SWITCH_FILE, choose_lru
from qmpalloc.experiment.spec import parsing
from qmpalloc.qmp.agent import ExecResult

GUEST = parsing.load(Path(__file__).parents[2] / "examples" / "smoke.toml").guests[0]


class Agent:
    """One whose programs all end in the same way."""

    address = "agent.sock"

    def __init__(self, out=b"", err=b"", exit_code=0):
        self.result = ExecResult(exit_code=exit_code, signal=None, out=out, err=err)
        self.ran = []

    async def run(self, argv):
        self.ran.append(argv)
        return self.result


def with_lru(lru):
    return msgspec.structs.replace(GUEST, lru=lru)


async def test_without_a_wish_nothing_is_touched():
    agent = Agent()
    await choose_lru(agent, with_lru(None))
    assert agent.ran == []


@pytest.mark.parametrize(
    ("lru", "letter", "mask"),
    [("multi-gen", "y", b"0x0007\n"), ("multi-gen", "y", b"0x0001\n"), ("two-list", "n", b"0x0000\n")],
)
async def test_the_kernel_is_switched_and_asked(lru, letter, mask):
    agent = Agent(mask)
    await choose_lru(agent, with_lru(lru))
    ((_, _, script),) = agent.ran
    assert script.startswith(f"echo {letter} > {SWITCH_FILE}")


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (Agent(err=b"sh: cannot create: Directory nonexistent\x1b[2J", exit_code=2), "cannot create"),
        (Agent(out=b"0x0007\n"), "0x0007"),
        (Agent(out=b"\xff"), "does not switch"),
    ],
)
async def test_a_kernel_that_does_not_switch_is_an_error(agent, said):
    with pytest.raises(HostError, match="g1: its kernel does not switch to lru = 'two-list'") as caught:
        await choose_lru(agent, with_lru("two-list"))
    assert said in caught.value.message
    assert "\x1b" not in caught.value.message
