"""Real guests for tests: the cached image (built when its inputs changed), and one booted guest per module."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import trio

from qmpalloc import config
from qmpalloc.config import Config
from qmpalloc.qemu.image import Image, obtain_image
from qmpalloc.qemu.launcher import Prepared, RunningGuest, open_guests, prepare
from qmpalloc.qemu.recipe import Variant

ONE_GUEST = """
[host]
budget = "1GiB"
run_dir = "run"

[[guest]]
name = "one"
floor = "256MiB"
cap = "768MiB"
baseline = "512MiB"
[guest.vm]
memory = "768MiB"
data = { size = "384MiB", files = { "load.dat" = "128MiB", "exact.dat" = "100MiB" } }
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything here, so that it can be left out, and give it time: images are built, and guests emulated."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.guest)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(900))


def say(line: str) -> None:
    """Report progress; pytest shows it when a test fails."""
    print(line, file=sys.stderr, flush=True)


@pytest.fixture(scope="session")
def image() -> Image:
    """The image of the present recipe, from the user's cache. Building it takes one to two minutes."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    return obtain_image(Variant(), report=say)


Prepare = Callable[[str, Path], tuple[Config, Prepared]]
RunInBackground = Callable[[Config, Prepared], AbstractContextManager[tuple[RunningGuest, ...]]]


@pytest.fixture(scope="session")
def one_guest() -> str:
    """The text of a configuration with one guest that has a data disk."""
    return ONE_GUEST


@pytest.fixture(scope="session")
def prepared_in(image: Image) -> Prepare:
    """A function: the text of a configuration, and a directory to put it and its guests' sockets in.

    Returns the configuration, with images and disks made.
    """

    def load_and_prepare(text: str, directory: Path) -> tuple[Config, Prepared]:
        file = directory / "test.toml"
        file.write_text(text)
        loaded = config.load(file)
        return loaded, prepare(loaded, report=say)

    return load_and_prepare


@pytest.fixture(scope="session")
def run_in_background() -> RunInBackground:
    """A context manager that runs guests outside of any test's event loop, for fixtures that outlive a test."""
    return _run_in_background


@contextmanager
def _run_in_background(loaded: Config, prepared: Prepared) -> Iterator[tuple[RunningGuest, ...]]:
    # A thread of its own holds the guests. It lives until the block ends, so the parent-death signal, which follows the
    # thread that started a process, does not come early.
    ready, stop = threading.Event(), trio.Event()
    state: dict[str, object] = {}

    async def hold() -> None:
        state["token"] = trio.lowlevel.current_trio_token()
        async with open_guests(loaded, prepared=prepared, report=say) as guests:
            state["guests"] = guests
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            trio.run(hold)
        except BaseException as error:  # handed to the fixture's thread
            state["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="guests")
    thread.start()
    ready.wait()
    try:
        if "error" in state:
            raise state["error"]  # type: ignore[misc]
        yield state["guests"]  # type: ignore[misc]
    finally:
        if thread.is_alive():
            state["token"].run_sync_soon(stop.set)  # type: ignore[attr-defined]
        thread.join()
    if "error" in state:
        raise state["error"]  # type: ignore[misc]


@pytest.fixture(scope="module")
def running_guest(
    prepared_in: Prepare, run_in_background: RunInBackground, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGuest]:
    """One booted, observed guest with a data disk, shared by the tests of a module."""
    with run_in_background(*prepared_in(ONE_GUEST, tmp_path_factory.mktemp("one"))) as guests:
        yield guests[0]
