"""The configuration of an arm is one that a user could have written."""

from fractions import Fraction
from pathlib import Path

import msgspec
import pytest

from qmpalloc.config.checks import check
from qmpalloc.config.convert import Mistakes
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.spec import parsing, scaling
from qmpalloc.qemu.image import image_dir
from qmpalloc.qemu.recipe import Variant
from qmpalloc.units import GIB, MIB

EXAMPLES = Path(__file__).parents[2] / "examples"
EXPERIMENTS = [file for file in sorted(EXAMPLES.rglob("*.toml")) if "\n[experiment]\n" in file.read_text()]
WORKLOADS = [file for file in EXPERIMENTS if file.parent != EXAMPLES]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_arm_of_the_examples_passes_the_checks_of_a_configuration(file):
    specification = parsing.load(file)
    for arm in specification.arms:
        config = arm_configuration(specification, arm, run_dir=Path("/tmp/run"))
        mistakes = Mistakes(config.file)
        check(config, mistakes)
        mistakes.raise_if_any()
        assert (config.policy, config.policy_settings) == (arm.policy, arm.policy_settings)


@pytest.mark.parametrize("file", WORKLOADS, ids=lambda file: file.stem)
def test_workloads_that_ship_can_be_run_from_nothing(file):
    found = parsing.load(file)
    assert [arm.policy for arm in found.arms] == ["static", "paper", "curve"]
    assert found.name == file.stem
    assert [bool(guest.phases[0].metrics) for guest in found.guests] == [True, True]
    for guest in arm_configuration(found, found.arms[0], run_dir=Path("/tmp/run")).guests:
        assert image_dir(Variant.of(guest.vm)).name.startswith("trixie-lab-")  # of files that are there


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
