"""``qmpalloc experiment``: what is refused, and what is shown, before anything boots."""

import errno
import io
import os
import signal
from pathlib import Path

import msgspec
import pytest
import trio
from click.testing import CliRunner
from rich.console import Console

from qmpalloc.cli import main
from qmpalloc.cli.conduct_experiment import Follower, conduct
from qmpalloc.cli.experiment import _conduct
from qmpalloc.control.lock import hold_lock
from qmpalloc.errors import ConfigError, HostError
from qmpalloc.experiment.run.runner import Remaining
from qmpalloc.experiment.spec.parsing import load
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.experiment.store.records import Manifest, Outcome

SMOKE = str(Path(__file__).parents[2] / "examples" / "smoke.toml")


def invoke(*words):
    return CliRunner().invoke(main, ["experiment", *words])


def refused(*words):
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    return result.output


def test_a_dry_run_shows_guests_loads_and_order():
    result = invoke("run", SMOKE, "--scale", "1/2", "--repeats", "2", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "smoke at scale 1/2: 4 runs" in result.output
    assert "guest g1: 128M to 256M, baseline 192M" in result.output
    assert "40000 reads of 160M, zipf, exponent 0.8" in result.output
    assert result.output.count("repeat2-") == 2


def test_only_some_arms():
    result = invoke("run", SMOKE, "--arms", "static", "--dry-run")
    assert "1 runs" in result.output
    assert "rule" not in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "/nowhere/x.toml"), "no such file"),
        (("run", SMOKE, "--scale", "0"), "not above 0"),
        (("run", SMOKE, "--scale", "1/100"), "at scale 1/100"),
        (("run", SMOKE, "--out", "x" * 300), "File name too long"),
        (("run", SMOKE, "--arms", "none"), "no arm is called 'none'"),
        (("run", SMOKE, "--arms", "rule"), "the reference arm 'static' is left out"),
        (("resume", "/nowhere"), "holds no experiment"),
        (("report", "/nowhere"), "holds no experiment"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_hint(words, message):
    said = refused(*words)
    assert message in said
    assert "hint: " in said


def test_a_directory_in_use_is_refused_before_anything_is_built(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    assert "is not empty" in refused("run", SMOKE, "--out", str(tmp_path))


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """An experiment that is to be resumed on a machine like the one it began on."""
    monkeypatch.setattr("qmpalloc.config.default_run_dir", lambda: tmp_path / "locks")
    fields = {"name": "smoke", "file": SMOKE, "scale": "1", "arms": ("static", "rule"), "repeats": 1, "command": "x"}
    fields |= {"created_wall": 0.0, "accelerator": {"g1": "tcg"}, "images": {"g1": "6.12 aaaa"}}
    manifest = Manifest(**fields, versions={"qemu": "QEMU 8"}, host={}, footprints={})
    directory = ExperimentDirectory.create(tmp_path / "out", load(SMOKE), manifest, Path(SMOKE).read_text())
    now = {"manifest": manifest}
    monkeypatch.setattr("qmpalloc.experiment.run.runner.prepare_experiment", lambda specification, report: None)
    monkeypatch.setattr("qmpalloc.experiment.run.runner.describe", lambda *_, **__: now["manifest"])
    monkeypatch.setattr("qmpalloc.cli.experiment._conduct", lambda *_: 0)
    monkeypatch.setattr("qmpalloc.experiment.report.write_report", lambda directory: [])
    return directory, now


def other(now, **fields):
    now["manifest"] = msgspec.structs.replace(now["manifest"], **fields)


def changes_kept(directory):
    return ExperimentDirectory.open_existing(directory.path).manifest.changes


def test_an_experiment_goes_on_where_it_began(begun):
    directory, _ = begun
    assert invoke("resume", str(directory.path)).exit_code == 0
    assert changes_kept(directory) == ()


def test_repeats_are_added_and_the_report_will_say_so(begun):
    directory, _ = begun
    assert invoke("resume", str(directory.path), "--repeats", "4").exit_code == 0
    (kept,) = changes_kept(directory)
    assert kept.endswith("UTC: resumed: 4 repeats instead of 1, with the first results known")
    again = ExperimentDirectory.open_existing(directory.path)
    assert again.specification.repeats == 4
    assert [run.repeat for run in again.left()] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert "cannot have 3 repeats, it has 4" in refused("resume", str(directory.path), "--repeats", "3")


def test_repeats_are_not_added_to_what_cannot_go_on(begun):
    directory, now = begun
    other(now, images={"g1": "6.12 bbbb"})
    refused("resume", str(directory.path), "--repeats", "4")
    assert ExperimentDirectory.open_existing(directory.path).manifest.repeats == 1


def test_another_image_is_refused_unless_told_otherwise(begun):
    directory, now = begun
    other(now, images={"g1": "6.12 bbbb"})
    said = refused("resume", str(directory.path))
    assert "cannot go on, its arms would not be comparable: image of g1 is 6.12 bbbb (was 6.12 aaaa)" in said
    assert "--anyway" in said
    assert changes_kept(directory) == ()
    assert invoke("resume", str(directory.path), "--anyway").exit_code == 0
    assert changes_kept(directory) == ("1970-01-01 00:00 UTC: resumed: image of g1 is 6.12 bbbb (was 6.12 aaaa)",)


def test_another_library_is_told_and_kept(begun):
    directory, now = begun
    other(now, versions={"qemu": "QEMU 8", "trio": "1"})
    assert "warning: trio is 1 (was none)" in invoke("resume", str(directory.path)).output
    assert changes_kept(directory) == ("1970-01-01 00:00 UTC: resumed: trio is 1 (was none)",)


def test_an_experiment_that_is_running_is_not_resumed(begun, tmp_path):
    directory, _ = begun
    with hold_lock(str(directory.path), tmp_path / "locks"):
        result = invoke("resume", str(directory.path))
    assert result.exit_code == 1
    assert "is in use by another qmpalloc" in result.output


def test_where_nothing_is_left_nothing_is_prepared(begun, monkeypatch):
    directory, _ = begun
    monkeypatch.setattr("qmpalloc.experiment.run.runner.prepare_experiment", None)
    for arm in ("static", "rule"):
        directory.run(ArmRun(1, arm)).begin()
        directory.run(ArmRun(1, arm)).write_outcome(
            Outcome(arm=arm, repeat=1, started_wall=0.0, total_s=1.0, load_s=None)
        )
    assert "nothing is left to run" in invoke("resume", str(directory.path)).output


def test_a_dry_run_tells_what_the_host_cannot_do(monkeypatch):
    monkeypatch.setattr("qmpalloc.experiment.run.preflight.check_memory", refuse)
    assert "too much" in refused("run", SMOKE, "--dry-run")


def refuse(*_):
    raise ConfigError("too much", hint="less")


class Closed(io.StringIO):
    """A terminal that is closed."""

    def isatty(self):
        return True

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("terminal", [True, False])
def test_when_nobody_reads_the_progress_the_experiment_is_interrupted(terminal):
    interrupted = []
    console = Console(file=Closed(), force_terminal=terminal)
    follower = Follower(console, dashboard=False, interrupt=lambda: interrupted.append(True))
    with follower:
        live = follower.begin(ArmRun(1, "static"), Remaining((ArmRun(1, "static"),), {}))
        live.status(0.5, "trial 1")
        live.report("a line")
    assert interrupted


@pytest.mark.parametrize(
    ("sent", "handler", "goes_on"),
    [
        (signal.SIGHUP, signal.SIG_DFL, False),
        (signal.SIGHUP, signal.SIG_IGN, True),  # nohup
        (signal.SIGTERM, signal.SIG_DFL, False),
    ],
)
def test_a_closed_terminal_interrupts_unless_that_is_to_be_ignored(monkeypatch, capsys, sent, handler, goes_on):
    async def run_experiment(*_, **__):
        os.kill(os.getpid(), sent)
        os.kill(os.getpid(), sent)  # impatience changes nothing
        await trio.sleep(0.3 if goes_on else 60)
        return True

    monkeypatch.setattr("qmpalloc.cli.conduct_experiment.run_experiment", run_experiment)
    before = signal.signal(sent, handler)
    try:
        assert trio.run(conduct, None, None, None, False) is (True if goes_on else None)
        said = capsys.readouterr().out
        assert said.count("stopping the guests; what is finished is kept") == (not goes_on)
    finally:
        signal.signal(sent, before)


@pytest.mark.parametrize("scale", ["quarter", "1/0", "1e999999999"])
def test_a_scale_is_a_fraction(scale):
    result = invoke("run", SMOKE, "--scale", scale, "--dry-run")
    assert result.exit_code == 2
    assert "is no fraction; for example 1/4" in result.output


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("qmpalloc.cli.conduct_experiment.time.monotonic", lambda: next(clock))
    follower = Follower(Console(width=200), dashboard=False, interrupt=lambda: None)
    with follower:
        live = follower.begin(ArmRun(1, "static"), Remaining((ArmRun(1, "static"),), {}, clock=lambda: 0.0))
        for share in (0.01, 0.02, 0.03):
            live.status(share, f"trial {share * 100:.0f}")
    said = capsys.readouterr().out.splitlines()
    assert said == ["run 0 of 1: static, repeat 1", "  repeat1-static, trial 2"]


def test_a_warning_is_said_once(capsys):
    follower = Follower(Console(width=200), dashboard=False, interrupt=lambda: None)
    for _ in range(2):
        follower.say("warning: guests are emulated")
    assert capsys.readouterr().out == "warning: guests are emulated\n"


@pytest.fixture
def conducted(tmp_path, monkeypatch):
    """`_conduct` on a new experiment, with the given coroutine function instead of the guests; and its directory."""
    monkeypatch.setattr("qmpalloc.config.default_run_dir", lambda: tmp_path / "locks")
    manifest = Manifest(
        name="smoke", file=SMOKE, scale="1", arms=("static", "rule"), repeats=1, command="x", created_wall=0.0,
        accelerator={}, images={}, versions={}, host={}, footprints={},
    )  # fmt: skip
    directory = ExperimentDirectory.create(tmp_path / "out", load(SMOKE), manifest, Path(SMOKE).read_text())

    def conduct_with(runs):
        monkeypatch.setattr("qmpalloc.cli.conduct_experiment.conduct", runs)
        return _conduct(directory, None, None, live=False)

    return conduct_with, directory


def test_an_experiment_that_is_given_up_is_reported_all_the_same(conducted):
    conduct_with, directory = conducted

    async def runs(*_):
        raise HostError("3 runs in a row failed")

    with pytest.raises(HostError, match="3 runs in a row"):
        conduct_with(runs)
    assert (directory.path / "report.md").is_file()


@pytest.mark.parametrize(("outcome", "code"), [(None, 130), (True, 1)])
def test_a_signal_while_the_report_is_made_says_how_to_make_it(conducted, monkeypatch, capsys, outcome, code):
    conduct_with, directory = conducted
    monkeypatch.setattr("qmpalloc.experiment.report.write_report", lambda _: os.kill(os.getpid(), signal.SIGTERM))

    async def runs(*_):
        return outcome

    assert conduct_with(runs) == code
    said = capsys.readouterr().out
    assert f"make it with: qmpalloc experiment report {directory.path}" in said
    assert ("go on with: qmpalloc experiment resume" in said) == (outcome is None)


def test_another_experiment_on_the_same_host_is_told_and_kept(conducted, tmp_path, capsys):
    conduct_with, directory = conducted

    async def runs(*_):
        return True

    assert conduct_with(runs) == 0
    assert changes_kept(directory) == ()
    with hold_lock(str(tmp_path / "locks" / "experiment"), tmp_path / "locks"):
        assert conduct_with(runs) == 0
    assert "warning: another experiment ran on this host at the same time" in capsys.readouterr().out
    assert len(changes_kept(directory)) == 1
    assert "another experiment ran on this host" in (directory.path / "report.md").read_text()


def test_a_list_of_no_arms_is_refused():
    result = CliRunner().invoke(main, ["experiment", "run", SMOKE, "--arms", ",", "--dry-run"])
    assert result.exit_code == 2
    assert "names no arm" in result.output


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\xff\xfe", "not a text file"), (b"[[", "not valid TOML"), (b"name = 1", "cannot be used")],
)
def test_a_spoilt_copy_of_the_experiment_is_named(begun, content, says):
    copy = begun[0].path / "experiment.toml"
    copy.write_bytes(content)
    result = CliRunner().invoke(main, ["experiment", "report", str(copy.parent)])
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {copy}: ")
    assert says in result.output


def test_a_dry_run_says_what_is_not_reset_between_arms(tmp_path):
    text = Path(SMOKE).read_text()
    for socket in ("a", "b", "c"):
        (tmp_path / socket).touch()
    attach = '[guest.attach]\nmonitor = "a"\nsecond_monitor = "b"\nagent = "c"\nchannel = ["sh", "-c"]\n[[guest.phase]]'
    file = tmp_path / "mine.toml"
    file.write_text(text.replace("[[guest.phase]]", attach, 1))
    result = invoke("run", str(file), "--dry-run")
    assert result.exit_code == 0, result.output
    assert "not reset between arms: guest g1 runs on from arm to arm" in result.output
    assert "not reset between arms: guest g1: its disks are not throttled" in result.output
