"""Programs as phases, run here as they are in the guests: what they come to, and every way in which they can fail."""

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from qmpalloc.experiment.run.generator import files, main, output, program
from qmpalloc.experiment.run.generator.output import KEPT_BYTES, PRINTED_BYTES
from qmpalloc.experiment.run.generator.progress import GaveUpError, Progress
from qmpalloc.experiment.spec.program import Metric
from qmpalloc.experiment.store.records import LoadProgress, ProgramPace

ROOT = pwd.getpwuid(os.getuid()).pw_name
RATE = Metric(name="rate", unit="1/s", better="higher", pattern=r"rate ([-+0-9.,a-z]+)")


def in_file(path):
    return Metric(name="a", unit="1", better="higher", json={"file": "out.json", "path": path})


class Guest:
    """A plan with one program or several, and what the generator makes of it."""

    def __init__(self, path, program):
        self.path = path
        self._program = program
        self.phases = []
        (path / "go").touch()

    def program(self, script, *metrics, **changed):
        number = len(self.phases)
        directory = self.path / f"directory{number}"
        directory.mkdir()
        phase = {
            "name": f"p{number}", "key": f"guest[0].phase[{number}]", "directory": str(directory), "duration": 0.0,
            "output": str(self.path / f"output{number}"), "series": str(self.path / f"series{number}"),
            "timeout": 20.0, "user": ROOT, "environment": {},
            "setup": [], "ready": [], "warm_up": [], "command": ["sh", "-c", script],
            "metrics": msgspec.to_builtins(metrics),
        }  # fmt: skip
        self.phases.append(phase | changed)
        return self

    def _generate(self, *words):
        files = {name: str(self.path / name) for name in ("progress", "go", "step_pid")}
        (self.path / "plan").write_text(json.dumps({**files, "phases": self.phases}))
        return subprocess.run(
            [sys.executable, self._program, *words, self.path / "plan"], check=False, capture_output=True, timeout=50
        )

    def run(self):
        """Return the progress in the end."""
        self._generate("run")
        return msgspec.json.decode((self.path / "progress").read_bytes(), type=LoadProgress)

    def prepare(self, step):
        """Return the exit code, and what is said of a failure."""
        done = self._generate("prepare", step)
        return done.returncode, done.stderr.decode()

    def once(self, number, seconds, *options):
        """Return the exit code, and what is said of how it went, and of a failure."""
        self._generate("prepare", "ready")  # writes the plan
        plan = [self.path / "plan", str(number), str(seconds), *options]
        done = subprocess.run(
            [sys.executable, self._program, "once", *plan], check=False, capture_output=True, timeout=50
        )
        return done.returncode, done.stdout, done.stderr.decode()

    def series(self, number=0):
        """Return metric, seconds, value and number of values of each point."""
        lines = (self.path / f"series{number}").read_text().splitlines()
        return [(name, *map(float, rest)) for name, *rest in (line.split(",") for line in lines)]

    def output(self, number=0):
        return (self.path / f"output{number}").read_bytes()


@pytest.fixture
def guest(tmp_path, program):
    return Guest(tmp_path, program)


def test_the_last_match_counts_or_the_mean_of_all(guest):
    every = msgspec.structs.replace(RATE, name="every", series=True)
    found = guest.program("echo rate 10; echo rate 20 >&2; echo no; printf 'rate 1,500'", RATE, every).run()
    (phase,) = found.phases
    assert (found.finished, found.error, phase.done, phase.reads) == (True, "", True, 0)
    assert phase.metrics["rate"].last == 1500
    assert (phase.metrics["every"].count, phase.metrics["every"].total) == (3, 1530)
    assert guest.output() == b"rate 10\nrate 20\nno\nrate 1,500"


def test_each_value_of_a_series_is_kept_with_its_time(guest):
    every = msgspec.structs.replace(RATE, name="every", series=True)
    last = msgspec.structs.replace(RATE, name="last")
    guest.program("echo rate 10; sleep 0.3; echo rate 20 rate 30; sleep 0.2", every, last).run()
    names, seconds, found, matches = zip(*guest.series(), strict=True)
    assert (names, found, matches) == (("every",) * 3, (10, 20, 30), (1, 1, 1))
    assert 0 <= seconds[0] <= seconds[1] - 0.3 <= seconds[2] - 0.3 < 20


def test_times_of_a_series_are_since_its_own_program_began(guest):
    every = msgspec.structs.replace(RATE, name="every", series=True)
    guest.program("sleep 4").program("echo rate 10", every).run()
    assert guest.series(1)[0][1] < 4


def test_a_series_is_kept_of_a_program_that_failed(guest):
    every = msgspec.structs.replace(RATE, name="every", series=True)
    found = guest.program("echo rate 10; exit 3", every).run()
    assert "ended with 3" in found.error
    assert [point[2] for point in guest.series()] == [10]


def test_a_long_series_becomes_coarser_and_loses_nothing(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(output.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(output, "SERIES_POINTS", 8)
    series = output.Series()
    for value in range(100):
        series.add(float(value))
        assert len(series.lines("x").splitlines()) <= 8
    points = [tuple(map(float, line.split(",")[1:])) for line in series.lines("x").splitlines()]
    assert [matches for _, _, matches in points] == [16] * 6 + [4]
    assert sum(mean * matches for _, mean, matches in points) == pytest.approx(sum(range(100)))
    assert [seconds for seconds, _, _ in points] == [16, 32, 48, 64, 80, 96, 100]


def test_values_that_are_written_over_each_other_are_lines_of_their_own(guest):
    every = msgspec.structs.replace(RATE, series=True)
    script = "for i in $(seq 20); do head -c 5000 /dev/zero | tr '\\0' x; printf 'rate %d\\r' $i; done"
    (phase,) = guest.program(script, every).run().phases
    assert (phase.metrics["rate"].count, phase.metrics["rate"].last) == (20, 20)


def test_groups_have_names_where_there_are_several(guest):
    metric = Metric(name="bw", unit="KiB/s", better="higher", pattern=r"(read|write): bw=(?P<value>\d+)(?P<unit>\S+)")
    found = guest.program("echo 'read: bw=712KiB/s'", metric).run()
    assert found.phases[0].metrics["bw"].last == 712


def test_a_value_may_come_from_a_file_that_it_writes(guest):
    metric = Metric(name="iops", unit="1/s", better="higher", json={"file": "out.json", "path": "jobs.0.read.iops"})
    found = guest.program("""echo '{"jobs": [{"read": {"iops": 512.5}}]}' > out.json""", metric).run()
    assert found.phases[0].metrics["iops"].last == 512.5


def test_programs_run_one_after_the_other_each_with_its_warm_up(guest):
    guest.program("echo first").program("cat warm", warm_up=["sh", "-c", "echo warm > warm"])
    found = guest.run()
    assert [phase.name for phase in found.phases] == ["p0", "p1"]
    assert found.finished
    assert (guest.output(0), guest.output(1)) == (b"first\n", b"warm\n")


def test_the_first_phase_is_warmed_up_by_the_host_alone(guest):
    guest.program("test ! -e warm", warm_up=["touch", "warm"]).program("true", warm_up=["touch", "warm"])
    assert guest.run().finished
    assert guest.prepare("warm_up") == (0, "")
    assert (guest.path / "directory0" / "warm").exists()


def test_after_its_duration_it_is_told_to_end_and_what_it_then_says_counts(guest):
    script = "trap 'echo rate 7; exit 3' TERM; while :; do sleep 0.05; done"
    began_s = time.monotonic()
    found = guest.program(script, RATE, duration=0.5).run()
    assert found.finished
    assert found.phases[0].metrics["rate"].last == 7
    assert 0.5 <= found.phases[0].seconds <= time.monotonic() - began_s


def test_it_ends_with_all_that_it_has_started(guest):
    found = guest.program("sleep 1000 & echo $!; sleep 1000", duration=0.3).run()
    assert found.finished
    until = time.monotonic() + 10
    child = Path(f"/proc/{int(guest.output())}/stat")
    while child.exists() and child.read_text().rsplit(") ", 1)[1][0] not in "ZX":
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_child_that_keeps_its_output_open_does_not_hold_it_up(guest):
    found = guest.program("setsid sleep 5 & echo rate 1", RATE).run()
    assert found.finished
    assert found.phases[0].seconds < 4


def test_one_that_does_not_heed_sigterm_is_killed(guest, monkeypatch):
    monkeypatch.setattr(program, "STOP_S", 0.2)
    phase = guest.program("trap '' TERM; while :; do sleep 0.05; done", duration=0.2).phases[0]
    progress = Progress(str(guest.path / "progress"))
    program.Program(phase).run(progress)
    assert progress.phases[0].done
    assert progress.phases[0].values()["seconds"] < 5


def test_of_much_output_beginning_and_end_are_kept_and_all_is_looked_at(guest):
    script = (
        "echo rate 1; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo rate 2; head -c 3000000 /dev/zero; echo end"
    )
    every = msgspec.structs.replace(RATE, series=True)
    found = guest.program(script, every).run()
    assert (found.finished, found.phases[0].metrics["rate"].count) == (True, 2)
    kept = guest.output()
    assert kept.startswith(b"rate 1\nxxx")
    assert kept.endswith(b"\0\0end\n")
    assert b"bytes are left out here" in kept
    assert len(kept) < 2 * KEPT_BYTES + 100


def test_one_that_never_stops_printing_ends_all_the_same(guest):
    found = guest.program("yes", RATE, duration=0.5).run()
    assert "metric[0].pattern: matches nothing" in found.error
    assert found.phases[0].seconds < 15


def test_one_that_prints_a_gigabyte_fails_and_little_of_it_is_kept(guest):
    found = guest.program("echo rate 1; head -c 1000000000 /dev/zero", RATE).run()
    said = f"guest[0].phase[0].command: has printed more than {PRINTED_BYTES >> 20} MiB"
    assert found.error.startswith(said)
    assert "(send to /dev/null what holds no metric" in found.error
    assert len(guest.output()) < 2 * KEPT_BYTES + 100
    code, told = guest.program("true", setup=["head", "-c", "1000000000", "/dev/zero"]).prepare("setup")
    assert (code, told.startswith("guest[0].phase[1].setup: has printed more than")) == (1, True)


def test_environment_and_directory(guest):
    found = guest.program("echo rate $NUMBER; pwd; id -un", RATE, environment={"NUMBER": "4"}).run()
    assert found.phases[0].metrics["rate"].last == 4
    assert guest.output().split()[2:] == [str(guest.path / "directory0").encode(), ROOT.encode()]


@pytest.mark.parametrize(
    ("script", "changed", "says"),
    [
        ("", {"command": ["no-such-program"]}, "phase[0].command: no-such-program is not in this guest"),
        ("", {"command": ["/etc/passwd"]}, "phase[0].command: /etc/passwd cannot be run"),
        ("echo rate 1; echo broken >&2; exit 3", {}, "phase[0].command: sh ended with 3; it said: rate 1 | broken"),
        ("kill -9 $$", {}, "phase[0].command: sh was killed by signal 9 (the guest may have had no memory left)"),
        ("exit 1", {"duration": 5.0}, "phase[0].command: sh ended with 1; it said: nothing"),
        ("sleep 60", {"timeout": 0.3}, "phase[0].command: sh has not ended after 0.3 s"),
        ("echo nothing of it", {}, "metric[0].pattern: matches nothing in 14 bytes of output, which end with: nothing"),
        ("echo rate nan", {}, "metric[0].pattern: the value is nan"),
        ("echo rate 1e290", {}, "metric[0].pattern: the value is 1e+290, which cannot be compared"),
        ("echo rate inf", {}, "metric[0].pattern: the value is inf"),
        ("echo rate fast", {}, "metric[0].pattern: 'fast' is no number"),
        ("sleep 60", {"duration": 0.3}, "metric[0].pattern: matches nothing in 0 bytes of output"),
        ("true", {"user": "no-such-user"}, "phase[0].user: nobody is called 'no-such-user'"),
    ],
)
def test_what_fails_is_told_with_its_key(guest, script, changed, says):
    found = guest.program(script, RATE, **changed).run()
    assert says in found.error
    assert not found.finished


def test_what_is_not_there_is_told_apart(guest):
    guest.program("true", command=["./x"])
    script = guest.path / "directory0" / "x"
    script.write_bytes(b"#!/bin/sh\r\necho\r\n")
    script.chmod(0o755)
    assert "[0].command: ./x is there, but not what its first line names" in guest.run().error
    guest.program("true")
    (guest.path / "directory1").rmdir()
    script.write_text("#!/bin/sh\n")
    assert "[1].command: its directory, " in guest.run().error


def test_why_it_failed_is_of_a_length_that_the_host_reads(guest):
    assert len(guest.program("true", command=["x" * 100_000]).run().error) < 5000


def test_a_pattern_that_would_never_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "LOOK_S", 0.1)
    plan = msgspec.to_builtins(msgspec.structs.replace(RATE, pattern="((a+)+)b"))
    gauges = [output.Gauge(msgspec.to_builtins(RATE), "m[0]"), output.Gauge(plan, "m[1]")]
    kept = output.Output(None, gauges, key="command")
    with pytest.raises(GaveUpError, match=r"m\[1\].pattern: has not come to an end .*\(a\+\)\+"):
        kept.add(b"a" * 60 + b"\n")
    kept.close()
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_a_pattern_that_this_python_does_not_know_is_told(guest):
    found = guest.program("true", msgspec.structs.replace(RATE, pattern="(")).run()
    assert "guest[0].phase[0].metric[0].pattern: Python 3" in found.error


def test_a_unit_that_changes_is_no_value(guest):
    metric = Metric(name="bw", unit="KiB/s", better="higher", pattern=r"bw=(?P<value>\d+)(?P<unit>\S+)")
    found = guest.program("echo bw=900KiB/s; echo bw=1MiB/s", metric).run()
    assert "metric[0].unit: the output is in 'MiB/s', not 'KiB/s'" in found.error


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "json.file: No such file or directory: out.json"),
        ("{", "json.path: there is no a.1 in out.json"),
        ("{}", "json.path: there is no a.1 in out.json"),
        ('{"a": [1]}', "json.path: there is no a.1 in out.json"),
        ('{"a": [1, "x"]}', "json.path: 'x' is no number"),
        ('{"a": [1, NaN]}', "json.path: the value is nan"),
        ('{"a": [1, true]}', "json.path: '' is no number"),
    ],
)
def test_a_file_without_the_value_is_told(guest, content, says):
    guest.program("test ! -e said || cp said out.json", in_file("a.1"))
    if content is not None:
        (guest.path / "directory0" / "said").write_text(content)
    assert f"guest[0].phase[0].metric[0].{says}" in guest.run().error


def test_a_key_may_have_dots(guest):
    script = """echo '{"jobs": [{"percentile": {"99.0": 1, "99.000000": 7}}]}' > out.json"""
    (phase,) = guest.program(script, in_file("jobs.0.percentile.99.000000")).run().phases
    assert phase.metrics["a"].last == 7


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("mkfifo out.json", "is not a file"),
        ("mkdir out.json", "is not a file"),
        ("head -c 17000000 /dev/zero > out.json", "is longer than 16 MiB"),
    ],
)
def test_what_is_no_file_to_be_read_is_told(guest, script, says):
    assert guest.program(script, in_file("a")).run().error.endswith(f"metric[0].json.file: out.json {says}")


def test_a_file_that_was_there_before_is_not_the_programs(guest):
    guest.program("true", in_file("a"))
    (guest.path / "directory0" / "out.json").write_text('{"a": 1}')
    assert guest.run().error.endswith("json.file: out.json was there before, and the program has not written it")
    guest.phases[0]["command"] = ["sh", "-c", """echo '{"a": 2}' > out.json"""]
    (phase,) = guest.run().phases
    assert phase.metrics["a"].last == 2


def test_a_step_is_ended_with_all_that_it_has_started(guest):
    guest.program("true", setup=["sh", "-c", "echo $$ > pid; sleep 100"])
    with ThreadPoolExecutor() as pool:
        preparing = pool.submit(guest.prepare, "setup")
        pid = guest.path / "directory0" / "pid"
        while not (pid.is_file() and pid.read_text()):
            time.sleep(0.05)
        os.kill(int((guest.path / "step_pid").read_text()), signal.SIGTERM)
        assert preparing.result() == (1, f"stopped by signal {signal.SIGTERM:d}\n")
    assert not Path("/proc", pid.read_text().strip()).exists()


def test_a_program_is_run_once_to_see_how_it_goes(guest):
    every = msgspec.structs.replace(RATE, name="every", series=True)
    script = "cat warm; echo rate 10; echo rate 20; while :; do sleep 0.05; done"
    guest.program("true").program(script, RATE, every, in_file("a"), warm_up=["sh", "-c", "echo rate 5 > warm"])
    code, said, _ = guest.once(1, 0.5, "--warm-up")
    pace = msgspec.json.decode(said, type=ProgramPace)
    assert (code, pace.metrics) == (0, {"rate": 20.0, "every": 35 / 3})  # the file was not written
    assert 0.5 <= pace.seconds < 5


def test_one_that_fails_when_it_is_run_once_is_told(guest):
    code, _, said = guest.program("echo oh; exit 3", RATE).once(0, 5.0)
    assert (code, said) == (1, "guest[0].phase[0].command: sh ended with 3; it said: oh\n")


def test_it_is_run_cold_when_all_caches_are_dropped(guest, monkeypatch):
    order = []
    monkeypatch.setattr(main, "drop_caches", lambda: order.append("drop"))
    monkeypatch.setattr(program.Program, "once", lambda _, seconds: order.append(seconds))
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    plan = {"phases": guest.program("true").phases, "step_pid": str(guest.path / "step_pid")}
    (guest.path / "plan").write_text(json.dumps(plan))
    monkeypatch.setattr(sys, "argv", ["generator", "once", str(guest.path / "plan"), "0", "2.5", "--cold"])
    assert main.main() == 0
    assert order == ["drop", 2.5]


def test_all_caches_are_dropped_by_the_kernels_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DROP_FILE", str(tmp_path / "drop"))
    files.drop_caches()
    assert (tmp_path / "drop").read_text() == "3"


def test_setup_runs_once_and_what_fails_in_it_is_told(guest):
    guest.program("true", setup=["sh", "-c", "echo made >> made"]).program(
        "true", setup=["sh", "-c", "echo oh; exit 4"]
    )
    code, said = guest.prepare("setup")
    assert (code, said) == (1, "guest[0].phase[1].setup: sh ended with 4; it said: oh\n")
    assert (guest.path / "directory0" / "made").read_text() == "made\n"


def test_all_that_setup_has_made_is_the_users(guest, monkeypatch):
    given = []
    monkeypatch.setattr(program.os, "chown", lambda path, *_, **__: given.append(Path(path).name))
    phase = guest.program("true", setup=["sh", "-c", "mkdir -p a; touch a/b"]).phases[0]
    program.Program(phase).prepare("setup")
    assert given == ["directory0", "a", "b"]


def test_ready_is_tried_until_it_is(guest):
    script = "echo x >> tries; test $(wc -l < tries) = 3"
    assert guest.program("true", ready=["sh", "-c", script]).prepare("ready") == (0, "")


def test_what_never_gets_ready_is_told(guest, monkeypatch):
    monkeypatch.setattr(program, "READY_S", 0.2)
    phase = guest.program("true", ready=["sh", "-c", "echo no; exit 2"]).phases[0]
    with pytest.raises(GaveUpError, match=r"never ready in 0 s: guest\[0\].phase\[0\].ready: sh ended with 2"):
        program.Program(phase).prepare("ready")
