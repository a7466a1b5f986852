"""An experiment on a guest that runs already: one agent for controller and load, and the guest as it was afterwards."""

import json
import subprocess
import sys

import pytest
import trio

from qmpalloc.channel import open_channel
from qmpalloc.qmp import deadline, open_monitor

pytestmark = pytest.mark.long

EXPERIMENT = """
[experiment]
name = "attached"
budget = "768MiB"
interval = "5s"
repeats = 1
[disk]
iops = 500
[[guest]]
name = "one"
memory = "768MiB"
floor = "256MiB"
cap = "768MiB"
baseline = "384MiB"
[guest.attach]
monitor = "{monitor}"
second_monitor = "{people}"
agent = "{lab}"
disks = ["root"]
[[guest.phase]]
file = "16MiB"
access = {{ distribution = "uniform" }}
reads = 2000
rounds = 2
[[guest.phase]]
command = ["sh", "-c", "cat /proc/sys/kernel/ostype; echo 42 turns"]
metric = [{{ name = "turns", unit = "1", better = "higher", pattern = '([0-9]+) turns' }}]
[[arm]]
name = "static"
policy = "static"
"""


async def test_a_guest_that_runs_takes_part_and_is_left_as_it_was(running_guest, tmp_path):
    sockets = running_guest.sockets
    file, out = tmp_path / "attached.toml", tmp_path / "out"
    file.write_text(EXPERIMENT.format(monitor=sockets.monitor, people=sockets.people, lab=sockets.lab))
    words = ["experiment", "run", str(file), "--out", str(out)]
    command = [sys.executable, "-m", "qmpalloc", *words]
    done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, done.stdout.decode()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"]
    run = summary["arms"][0]["repeats"][0]
    assert run["metrics"]["one"]["phase2"]["turns"] == 42
    assert run["misses"] > 0
    assert "Linux" in (out / "runs" / "repeat1-static" / "output-one-phase2.txt").read_text()
    assert "Not reset between arms: guest one runs on" in (out / "report.md").read_text()

    async with open_monitor(str(sockets.people)) as monitor:
        assert (await monitor.block_stats())[0].name == "root"
        limits = {each["device"]: each["inserted"]["iops"] for each in await monitor.execute("query-block")}
        assert limits["root"] == 0
        assert await monitor.query_balloon() > 384 * 1024**2  # on its way back to where it was
    async with open_channel("agent", guest="one", agent=sockets.lab) as channel:
        with deadline(60, "lab", "what is left"):
            left = await channel.run(["sh", "-c", "ls -d /run/qmpalloc-load /var/tmp/qmpalloc; pgrep -f '[g]enerator'"])
    assert left.out == b""
