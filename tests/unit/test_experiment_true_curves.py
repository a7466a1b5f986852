"""The true curves of an experiment's loads, and the oracle that is computed from them."""

from array import array
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from qmpalloc.errors import ConfigError
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec import parsing, scaling
from qmpalloc.experiment.spec.access import Loop, Uniform, Zipf
from qmpalloc.experiment.spec.references import page_numbers
from qmpalloc.experiment.spec.true_curves import phase_curves, true_curves
from qmpalloc.experiment.store.directory import ExperimentDirectory
from qmpalloc.experiment.store.records import Manifest
from qmpalloc.policy import load as load_policy
from qmpalloc.policy.oracle import OraclePolicy

PAGES = 2_000
TEXT = """
[experiment]
name = "try"
budget = "512MiB"
[[guest]]
name = "g1"
memory = "384MiB"
floor = "128MiB"
cap = "384MiB"
baseline = "256MiB"
[[guest.phase]]
file = "8MiB"
access = {{ distribution = "uniform" }}
reads = 10000
rounds = 2
[[guest.phase]]
file = "4MiB"
access = {{ distribution = "loop", share = 0.5 }}
reads = 5000
rounds = 2
[[arm]]
name = "static"
policy = "static"
[[arm]]
name = "best"
policy = "oracle"
{settings}
"""


def specification(settings="", file=Path("/try.toml")):
    return parsing.parse(TEXT.format(settings=settings), file=file)


def numbers(access, count=60_000):
    return array("I", islice(page_numbers(access, PAGES, seed=1, guest="g", phase="p"), count))


def one(pages, *, most_pages=10**6, lru="lru_gen"):
    """The curve of a guest with one phase."""
    sizes, (ratios,) = phase_curves([np.array(pages)], most_pages=most_pages, lru=lru)
    return sizes, ratios


@pytest.mark.parametrize("lru", ["two_list", "lru_gen"])
def test_under_uniform_reads_every_page_is_worth_the_same(lru):
    sizes, ratios = one(numbers(Uniform()), lru=lru)
    assert ratios == pytest.approx([1 - size / PAGES for size in sizes], abs=0.03)
    assert (sizes[-1], ratios[-1]) == (PAGES, 0.0)


def test_a_loop_is_a_cliff():
    known = dict(zip(*one(numbers(Loop(share=0.5))), strict=True))
    assert known[1000] == 0.0
    assert known[980] > 0.5


def test_first_accesses_are_left_out():
    """Each page is read three times, with all others in between; the second half has no first access."""
    known = dict(zip(*one([*range(100)] * 3), strict=True))
    assert known[50] == 1.0
    assert known[100] == 0.0


def test_what_is_read_once_gains_nothing_from_a_cache():
    assert set(one(range(50))[1]) == {0.0}
    assert one([]) == ([1], [0.0])


def test_sizes_beyond_the_guest_are_not_simulated_but_for_the_working_set():
    sizes, _ = one(numbers(Zipf(exponent=0.9)), most_pages=500)
    assert sum(size <= 500 for size in sizes) == 20
    assert len(sizes) == 22


def test_a_phase_may_be_burdened_with_what_the_one_before_left():
    """As in real guests: after a change of files the multi-generational LRU keeps the old one, the two lists do not."""
    first = np.array(numbers(Uniform(), 20 * PAGES))
    second = first[::-1] + PAGES
    for lru, burdened in (("lru_gen", True), ("two_list", False)):
        sizes, (_, after) = phase_curves([first, second], most_pages=10**6, lru=lru)
        alone = dict(zip(*one(second, lru=lru), strict=True))
        known = dict(zip(sizes, after, strict=True))
        assert (known[1600] > alone[1600] + 0.2) is burdened


def test_phases_that_read_the_same_file_share_its_pages():
    pages = np.array(numbers(Uniform(), 20 * PAGES))
    sizes, ratios = phase_curves([pages, pages], most_pages=10**6, lru="lru_gen")
    assert sizes[-1] == PAGES
    assert ratios[0] == pytest.approx(ratios[1], abs=0.05)


def test_each_phase_has_a_curve_that_holds_for_its_accesses():
    guest = specification().guests[0]
    traces = Traces(specification())
    curves = traces.true_curves()
    assert traces.true_curves() is curves
    first, second = curves["g1"]
    assert first["until_accesses"] == 20_000
    assert "until_accesses" not in second
    assert [curve["working_set"] for curve in (first, second)] == [
        len(set(array("I", traces.trace(guest, phase)))) for phase in guest.phases
    ]
    assert first["sizes"] == second["sizes"]
    assert first["sizes"][-1] == f"{10 << 20}B"  # all that is read of both files
    assert second["miss_ratio"][-1] == 0.0
    policy = load_policy("oracle", {"curves": curves})
    assert isinstance(policy, OraclePolicy)  # it knows, and so promises nothing


def test_a_phase_at_a_rate_of_its_own_is_known_by_it():
    guest = specification().guests[0]
    paced = structs.replace(guest, phases=(structs.replace(guest.phases[0], rate=4_000.0), guest.phases[1]))
    first, second = true_curves(paced, lambda phase: numbers(Uniform(), 5_000))
    assert first["accesses_per_s"] == 4_000.0
    assert "accesses_per_s" not in second


def test_an_experiment_may_leave_the_oracles_curves_out():
    arm = specification().arms[1]
    assert arm.is_computed_oracle
    assert arm_configuration(specification(), arm, run_dir=Path("/x")).policy_settings == {"curves": {}}
    scaled = scaling.scale(specification(), Fraction(3, 2))
    assert scaled.arms[1].is_computed_oracle
    assert scaled.arms[1].is_oracle
    assert scaled.arms[1].settings == {}


def test_wrong_settings_of_a_computed_oracle_are_told_at_the_arm():
    with pytest.raises(ConfigError) as caught:
        specification('settings = { objective = "speed" }')
    assert caught.value.key == "arm[1].settings.objective"
    with pytest.raises(ConfigError) as caught:
        specification('settings = { file = "none.json" }')
    assert caught.value.key == "arm[1].settings.file"


def test_an_arm_that_knows_its_curves_later_is_not_the_mark_for_the_others():
    arm = specification("settings = { known_after = 1.5 }").arms[1]
    assert arm.is_computed_oracle
    assert not arm.is_oracle


def test_a_file_of_curves_is_kept_with_the_experiment(tmp_path):
    (tmp_path / "known.json").write_text('{"format": "qmpalloc-curves", "version": 1, "curves": {}}')
    text = TEXT.format(settings='settings = { file = "known.json" }')
    spec = parsing.parse(text, file=tmp_path / "try.toml")
    manifest = Manifest(
        name="try", file=str(tmp_path / "try.toml"), scale="1", arms=("static", "best"), repeats=1, command="",
        created_wall=0.0, accelerator={}, images={}, versions={}, host={}, footprints={},
    )  # fmt: skip
    ExperimentDirectory.create(tmp_path / "out", spec, manifest, text)
    (tmp_path / "known.json").unlink()
    again = ExperimentDirectory.open_existing(tmp_path / "out")
    assert again.specification.arms[1].settings == {"file": "known.json"}


def test_a_guest_s_true_curves_depend_on_its_page_replacement():
    guest = specification().guests[0]
    kinds = ({"suite": "trixie"}, {"suite": "bookworm"}, {"suite": "trixie", "lru": "two-list"})
    made = [true_curves(structs.replace(guest, **kind), lambda phase: numbers(Zipf())) for kind in kinds]
    assert made[0] != made[1]
    assert made[1] == made[2]
