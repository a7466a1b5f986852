"""A program as a load on a real guest: its metric's values with their times, its disk, and what the report says."""

import json
import subprocess
import sys

import pytest

from qmpalloc.experiment.analysis.results import load_results
from qmpalloc.experiment.store.directory import ExperimentDirectory

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

PROGRAM = """
import json, os, random, sys, time

file, seed = os.open("/data/rows", os.O_RDONLY), sys.argv[1]
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
pages, choose, done = os.fstat(file).st_size >> 12, random.Random(seed), 0
if sys.argv[2:] == ["warm"]:
    while os.read(file, 1 << 20):
        pass
    sys.exit()
began_s = before_s = time.monotonic()
while (now_s := time.monotonic()) < began_s + 8:
    os.pread(file, 4096, choose.randrange(pages) << 12)
    done += 1
    if now_s >= before_s + 0.5:
        print(f"{done / (now_s - before_s):.1f} reads/s", flush=True)
        before_s, done = now_s, 0
with open("out.json", "w") as out:
    json.dump({"runs": [{"seconds": now_s - began_s}]}, out)
"""

FILE_PAGES = 24 * 256

TEXT = """
[experiment]
name = "program"
budget = "320MiB"
interval = "3s"
repeats = 1
[disk]
by = "programs"
[[guest]]
name = "A"
memory = "320MiB"
floor = "256MiB"
cap = "320MiB"
baseline = "320MiB"
[[guest.phase]]
name = "work"
copy = ["work.py"]
files = { rows = "24MiB" }
setup = ["sh", "-c", "echo {guest} at {scale} > made"]
ready = ["test", "-e", "made"]
warm_up = ["python3", "work.py", "{seed}", "warm"]
command = ["python3", "work.py", "{seed}"]
timeout = "60s"
user = "nobody"
[[guest.phase.metric]]
name = "rate"
unit = "reads/s"
better = "higher"
pattern = '(?P<value>[0-9.]+) (?P<unit>\\S+)'
series = true
[[guest.phase.metric]]
name = "time"
unit = "s"
better = "lower"
json = { file = "out.json", path = "runs.0.seconds" }
[[arm]]
name = "static"
policy = "static"
[[arm]]
name = "less"
policy = "static"
baselines = { A = "256MiB" }
"""


@pytest.fixture(scope="module")
def finished(image, tmp_path_factory):
    """The directory of the experiment, and what was said while it ran."""
    base = tmp_path_factory.mktemp("program")
    (base / "work.py").write_text(PROGRAM)
    (base / "try.toml").write_text(TEXT)
    words = ["experiment", "run", str(base / "try.toml"), "--out", str(base / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "qmpalloc", *words], check=False, capture_output=True, text=True, timeout=1100
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return ExperimentDirectory.open_existing(base / "out")


def test_every_value_is_kept_with_its_time(finished):
    for name in ("static", "less"):
        (run,) = load_results(finished).counted(name)
        (phase,) = run.guests["A"].phases
        assert {each.metric for each in phase.series} == {"rate"}
        assert phase.trial < len(phase.series) <= 16  # finer than trials
        times = [each.seconds for each in phase.series]
        assert times == sorted(times)
        assert 0.5 * len(times) <= times[-1] <= phase.seconds
        assert run.metric_values["A", "work", "rate"] == pytest.approx(
            sum(each.value for each in phase.series) / len(phase.series)
        )
        assert run.metric_values["A", "work", "time"] >= 8
        kept = (finished.path / "runs" / f"repeat1-{name}" / "output-A-work.txt").read_text()
        assert kept.count("reads/s") == len(phase.series)


def test_the_program_missed_little_once_it_was_warmed_up(finished):
    (run,) = load_results(finished).counted("static")
    counts = run.counts
    assert counts.accesses >= 0.9 * 0.5 * sum(each.value for each in run.guests["A"].phases[0].series)
    assert counts.misses < 0.1 * counts.accesses


def test_the_ratio_of_miss_to_hit_is_that_of_the_program(finished):
    disk = finished.disk()
    service = disk.programs["A"]["work"]
    assert (disk.by, disk.hit_s) == ("programs", pytest.approx(service.hit_s))
    assert disk.iops == pytest.approx(1 / (50 * service.hit_s), rel=0.02)
    assert service.warm.accesses > 10 * service.warm.misses
    # A fast machine misses the whole file once within the eight seconds, and hits from then on.
    assert service.cold.misses > min(0.25 * service.cold.accesses, 0.95 * FILE_PAGES)
    # What a busy host adds is no defect, but no disk is faster than its throttle.
    assert service.miss_s > 0.8 / disk.iops
    assert service.ratio > 0.8 * 50


def test_the_report_is_by_metric(finished):
    text = (finished.path / "report.md").read_text()
    assert "less over all guests by weight" in text
    assert text.index("figures/forest.svg") < text.index("less over all guests by weight")
    assert (finished.path / "figures" / "metrics.svg").exists()
    assert "What a miss costs the programs" in text
    metrics = json.loads((finished.path / "summary.json").read_text())["arms"][0]["repeats"][0]["metrics"]
    assert metrics["A"]["work"].keys() == {"rate", "time"}
