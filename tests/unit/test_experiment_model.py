"""The benchmark that runs an experiment in the model."""

import importlib.util
import sys
from pathlib import Path

import pytest

TEXT = """
[experiment]
name = "tiny"
budget = "512MiB"
interval = "5s"
warm_up = "none"
[[guest]]
name = "small"
memory = "384MiB"
floor = "160MiB"
cap = "352MiB"
baseline = "256MiB"
[[guest.phase]]
file = "16MiB"
access = { distribution = "uniform" }
reads = 5000
rounds = 4
[[guest.phase]]
file = "8MiB"
access = { distribution = "uniform" }
reads = 1000
rounds = 4
rate = 200
[[guest]]
name = "large"
memory = "384MiB"
floor = "160MiB"
cap = "352MiB"
baseline = "256MiB"
[[guest.phase]]
file = "190MiB"
access = { distribution = "uniform" }
reads = 50000
rounds = 6
[[arm]]
name = "static"
policy = "static"
[[arm]]
name = "paper"
policy = "paper"
[[arm]]
name = "oracle"
policy = "oracle"
"""

POLICY = 'policy = "curve"'


@pytest.fixture
def main():
    file = Path(__file__).parents[2] / "benchmarks" / "experiment_model.py"
    spec = importlib.util.spec_from_file_location("experiment_model", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_every_arm_runs_to_its_end(main, tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.toml").write_text(TEXT)
    monkeypatch.setattr(sys, "argv", ["experiment_model.py", str(tmp_path / "tiny.toml"), "--verbose"])
    main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {cells[0]: cells for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}
    assert set(rows) >= {"static", "paper", "oracle"}
    assert rows["static"][3:5] == ["1.00", "0%"]
    assert rows["oracle"][4] == "100%"
    assert float(rows["oracle"][3]) < 0.9
    assert rows["static"][7:9] == ["0B", "0"]
    assert "small" in rows["oracle"][9]
    assert "/" in rows["oracle"][9].split(",")[0]  # both phases of the first guest ended


def test_what_cannot_be_modelled_is_refused_with_the_phase(main, tmp_path, monkeypatch, capsys):
    text = TEXT.replace("rounds = 6", 'duration = "20s"')
    program = '[[guest.phase]]\nname = "sleeps"\ncommand = ["sleep", "9"]\n[[guest]]'
    (tmp_path / "mixed.toml").write_text(program.join(text.rsplit("[[guest]]", 1)).replace('policy = "oracle"', POLICY))
    monkeypatch.setattr(sys, "argv", ["experiment_model.py", str(tmp_path / "mixed.toml")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert (
        f"{tmp_path / 'mixed.toml'}: guest[0].phase[2].command: what sleeps of small reads is known to nobody" in said
    )
    assert "guest[1].phase[0].duration: phases of reads are modelled by rounds" in said
