"""Real peers for the contract tests."""

import subprocess

import pytest
import trio

START_LIMIT_S = 30


@pytest.fixture
async def start_listening():
    """Return a function that starts a program and waits until it has made its socket. Ended after the test."""
    processes = []

    async def start(argv, path):
        process = await trio.lowlevel.open_process(argv, stdin=subprocess.DEVNULL)
        processes.append(process)
        with trio.fail_after(START_LIMIT_S):
            while not await listens(path):
                assert process.poll() is None, f"{argv[0]} has ended"
                await trio.sleep(0.02)

    yield start
    for process in processes:
        process.kill()
        await process.wait()


async def listens(path):
    try:
        stream = await trio.open_unix_socket(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    await stream.aclose()
    return True
