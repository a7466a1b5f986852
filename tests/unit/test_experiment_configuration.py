"""The configuration of an arm is one that a user could have written."""

from fractions import Fraction
from pathlib import Path

import msgspec
import pytest

from qmpalloc.config.checks import check
from qmpalloc.config.convert import Mistakes
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.spec import parsing, scaling
from qmpalloc.units import GIB, MIB

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["paper-x1", "paper-x2", "paper-x2-full", "smoke", "mmap", "program-grows"])
def test_every_arm_of_the_examples_passes_the_checks_of_a_configuration(name):
    specification = parsing.load(EXAMPLES / f"{name}.toml")
    for arm in specification.arms:
        config = arm_configuration(specification, arm, run_dir=Path("/tmp/run"))
        mistakes = Mistakes(config.file)
        check(config, mistakes)
        mistakes.raise_if_any()
        assert (config.policy, config.policy_settings) == (arm.policy, arm.settings)


def test_sizes_follow_the_scale_and_the_arm():
    specification = scaling.scale(parsing.load(EXAMPLES / "paper-x2.toml"), Fraction(1, 4))
    arm = msgspec.structs.replace(specification.arms[0], baselines={"g1": 512 * MIB})
    config = arm_configuration(specification, arm, run_dir=Path("/tmp/run"))
    assert config.host.budget == GIB * 3 // 2
    assert [guest.baseline for guest in config.guests] == [512 * MIB, 768 * MIB]
    assert config.guests[0].vm.data.files == {"file-512M.dat": 512 * MIB, "file-1G.dat": GIB}
    assert config.guests[0].vm.data == config.guests[1].vm.data  # one disk for both, whatever the order
    assert config.guests[0].vm.data.iops == 0  # the throttle is set when its hits have been timed


def test_short_trials_are_sampled_more_often():
    specification = parsing.load(EXAMPLES / "smoke.toml")
    for interval_s, sampled_s in ((15.0, 1.0), (1.5, 0.5)):
        timed = msgspec.structs.replace(specification, interval=interval_s)
        config = arm_configuration(timed, timed.arms[0], run_dir=Path("/tmp/run"))
        assert float(config.control.sample_interval) == pytest.approx(sampled_s)
