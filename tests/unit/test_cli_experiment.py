"""``qmpalloc experiment``: what is refused, and what is shown, before anything boots."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from qmpalloc.cli import main
from qmpalloc.cli.conduct_experiment import Follower
from qmpalloc.experiment import ArmRun
from qmpalloc.lab.runner import Remaining

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
    assert "40000 reads of 160M, Zipf(exponent=0.8)" in result.output
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


@pytest.mark.parametrize("scale", ["quarter", "1/0"])
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
