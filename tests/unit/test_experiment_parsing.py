"""The specification of an experiment: what it says, what is refused, and what scaling keeps."""

from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpalloc.errors import ConfigError
from qmpalloc.experiment.spec import parsing, scaling
from qmpalloc.experiment.spec.access import Loop, Mixture, Normal, Part, Zipf
from qmpalloc.experiment.spec.checks import check_memory
from qmpalloc.experiment.spec.schema import Disk
from qmpalloc.host.facts import to_plain
from qmpalloc.units import GIB, MIB, PAGE_BYTES, parse_size

EXAMPLES = Path(__file__).parents[2] / "examples"
FILE = Path("/somewhere/try.toml")
GUEST = """
[[guest]]
name = "{name}"
memory = "2GiB"
floor = "512MiB"
cap = "2GiB"
baseline = "1GiB"
[[guest.phase]]
file = "1GiB"
access = {{ distribution = "normal", deviation = 0.15 }}
reads = 100
rounds = 10
"""
GOOD = (
    '[experiment]\nname = "try"\nbudget = "2GiB"\n'
    + GUEST.format(name="g1")
    + GUEST.format(name="g2")
    + '[[arm]]\nname = "static"\npolicy = "static"\n[[arm]]\nname = "rule"\npolicy = "paper"\n'
)


def parsed(text):
    return parsing.parse(text, file=FILE)


def mistake(text):
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    return str(caught.value)


def test_a_good_file_with_its_defaults():
    found = parsed(GOOD)
    assert found.budget == 2 * GIB
    assert (found.repeats, found.interval, found.warm_up, found.scale) == (3, 15.0, "read", "1")
    assert found.disk == Disk(model="ssd")
    phase = found.guests[0].phases[0]
    assert (phase.name, phase.file_name, phase.pages, phase.total_reads) == ("phase1", "file-1G.dat", 262144, 1000)
    assert phase.access == Normal(deviation=0.15)
    assert found.arms[1].baseline(found.guests[0]) == GIB


@pytest.mark.parametrize("name", ["paper-x1", "paper-x2", "paper-x2-full"])
def test_the_papers_experiments_are_as_it_describes_them(name):
    found = parsing.load(EXAMPLES / f"{name}.toml")
    assert found.name == name
    assert found.budget == 6 * GIB
    assert [(g.floor, g.cap, g.baseline) for g in found.guests] == [(GIB, 5 * GIB, 3 * GIB)] * 2
    files = [[phase.file // GIB for phase in guest.phases] for guest in found.guests]
    assert files == ([[2], [4]] if name == "paper-x1" else [[2, 4], [4, 2]])
    assert {phase.rounds for guest in found.guests for phase in guest.phases} == {50}
    assert [arm.name for arm in found.arms] == ["static", "literal", "dead-band"]


def test_a_mixture_and_a_split_of_an_arms_own():
    parts = '[{ weight = 3, distribution = "zipf" }, { weight = 1, distribution = "loop", share = 0.5 }]'
    text = GOOD.replace(
        '{ distribution = "normal", deviation = 0.15 }', f'{{ distribution = "mixture", parts = {parts} }}'
    )
    found = parsed(text + 'baselines = { g1 = "768MiB" }\n')
    zipf, loop = Part(weight=3.0, access=Zipf()), Part(weight=1.0, access=Loop(share=0.5))
    assert found.guests[1].phases[0].access == Mixture(parts=(zipf, loop))
    assert [found.arms[1].baseline(guest) for guest in found.guests] == [768 * MIB, GIB]


def test_phases_share_a_file_when_they_say_so_or_have_its_size():
    guest = GUEST.format(name="g1")
    phase = guest[guest.index("[[guest.phase]]") :]
    named = phase.replace("]]\n", ']]\nfile_name = "a"\n')
    with_phases = {
        both: GOOD.replace(guest, guest.replace(phase, both[0] + both[1]))
        for both in ((phase, phase), (named, phase), (named, named.replace("1GiB", "512MiB")))
    }
    same, apart, two_sizes = with_phases.values()
    assert parsed(same).guests[0].files == {"file-1G.dat": GIB}
    assert parsed(apart).guests[0].files == {"a": GIB, "file-1G.dat": GIB}
    assert "guest[0].phase[1].file: a has two sizes, 1G and 512M" in mistake(two_sizes)


ACCESS = 'distribution = "normal", deviation = 0.15'


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        (("[experiment]", "[experimental]"), "experimental", "unknown table"),
        (('budget = "2GiB"', ""), "experiment.budget", "docs/experiments.md"),
        (('"2GiB"', '"1000MiB"'), "experiment.budget", "floors add up to 1G"),
        (('budget = "2GiB"', 'budget = "1500MiB"'), "arm[0].baselines", "baselines of static add up to 2G"),
        (('name = "try"', 'name = "../try"'), "experiment.name", "is not a name"),
        (('name = "try"', 'name = "try"\nrepeats = 0'), "experiment.repeats", "at least 1"),
        (('name = "try"', 'name = "try"\ninterval = "500ms"'), "experiment.interval", "at least 1 s"),
        (('name = "try"', 'name = "try"\nseed = -1'), "experiment.seed", "at least 0"),
        (('name = "try"', 'name = "try"\nreference = "fixed"'), "experiment.reference", "no arm is called 'fixed'"),
        (('name = "try"', 'name = "try"\nwarm_up = "hot"'), "experiment.warm_up", "none of 'read', 'none'"),
        (("[[guest]]", '[disk]\nmodel = "tape"\n[[guest]]'), "disk.model", "none of 'raw', 'ssd', 'hdd'"),
        (("reads = 100", 'reads = 100\nreadahead = "yes"'), "guest[0].phase[0].readahead", "bool"),
        (("[[guest]]", "[disk]\niops = -1\n[[guest]]"), "disk.iops", "at least 0"),
        (("[[guest]]", '[disk]\nmodel = "ssd"\niops = 5\n[[guest]]'), "disk.iops", "not both"),
        (("[[guest]]", '[disk]\nsize = "1GiB"\n[[guest]]'), "guest[0].phase[0].file", "raise disk.size"),
        (('name = "g2"', 'name = "g1"'), "guest[1].name", "already guest[0].name"),
        (('floor = "512MiB"', 'floor = "3GiB"'), "guest[0].floor", "above the cap"),
        (('floor = "512MiB"', 'floor = "0B"'), "guest[0].floor", "above 0"),
        (('"512MiB"\ncap = "2GiB"', '"1GB"\ncap = "1GB"'), "guest[0].floor", "no whole page of 4096 bytes"),
        (('baseline = "1GiB"', 'baseline = "256MiB"'), "guest[0].baseline", "not between floor and cap"),
        (('memory = "2GiB"', 'memory = "1GiB"'), "guest[0].cap", "raise memory"),
        (('memory = "2GiB"', 'memory = "2GiB"\nsuite = "woody"'), "guest[0].suite", "none of 'trixie', 'bookworm'"),
        (('memory = "2GiB"', 'memory = "2GiB"\nlru = "fifo"'), "guest[0].lru", "none of 'two-list', 'multi-gen'"),
        (("[[guest.phase]]", "[guest.phase]"), "guest[0].phase", "[[guest.phase]]"),
        (('file = "1GiB"', 'file = "1KiB"'), "guest[0].phase[0].file", "at least a page"),
        (('file = "1GiB"', 'file = "1GiB"\nfile_name = "../a"'), "guest[0].phase[0].file_name", "not a file name"),
        (("rounds = 10", "rounds = 0"), "guest[0].phase[0].rounds", "at least 1"),
        (("reads = 100", "reads = 0"), "guest[0].phase[0].reads", "at least 1"),
        (("reads = 100", "reeds = 100"), "guest[0].phase[0].reeds", "did you mean reads?"),
        (("rounds = 10", "rounds = 10\nrate = -1"), "guest[0].phase[0].rate", "at least 0.1 per second"),
        (("rounds = 10", "rounds = 10000000"), "guest[0].phase[0].reads", "take 3.73G of its memory"),
        ((f"access = {{ {ACCESS} }}", ""), "guest[0].phase[0].access", "missing"),
        ((f"{{ {ACCESS} }}", '"normal"'), "guest[0].phase[0].access", "must be a table"),
        ((ACCESS, "deviation = 0.3"), "guest[0].phase[0].access.distribution", "known are normal"),
        (('"normal"', '"nomal"'), "guest[0].phase[0].access.distribution", "did you mean normal?"),
        (('"normal"', "[]"), "guest[0].phase[0].access.distribution", "unknown distribution"),
        (('"normal"', '"zipf"'), "guest[0].phase[0].access.deviation", "known are exponent"),
        (("0.15", "0"), "guest[0].phase[0].access.deviation", "share of the file"),
        (("0.15", "15"), "guest[0].phase[0].access.deviation", "share of the file"),
        (("0.15", "nan"), "guest[0].phase[0].access.deviation", "no number"),
        ((ACCESS, 'distribution = "zipf", exponent = -1'), "guest[0].phase[0].access.exponent", "above 0"),
        ((ACCESS, 'distribution = "hotcold", hot = 1'), "guest[0].phase[0].access.hot", "above 0 and below 1"),
        (
            (ACCESS, 'distribution = "hotcold", hot_reads = 2'),
            "guest[0].phase[0].access.hot_reads",
            "at least 0 and at most 1",
        ),
        ((ACCESS, 'distribution = "loop"'), "guest[0].phase[0].access.share", "missing"),
        ((ACCESS, 'distribution = "loop", share = 0'), "guest[0].phase[0].access.share", "above 0"),
        ((ACCESS, 'distribution = "loop", share = 0.5, start = 0.6'), "guest[0].phase[0].access.start", "outside"),
        ((ACCESS, 'distribution = "mixture", parts = []'), "guest[0].phase[0].access.parts", "no parts is given"),
        (
            (ACCESS, 'distribution = "mixture", parts = [{ distribution = "zipf" }]'),
            "guest[0].phase[0].access.parts[0].weight",
            "missing",
        ),
        (
            (ACCESS, 'distribution = "mixture", parts = [{ weight = 0, distribution = "zipf" }]'),
            "guest[0].phase[0].access.parts[0].weight",
            "above 0",
        ),
        (
            (ACCESS, 'distribution = "mixture", parts = [{ weight = 1, distribution = "mixture" }]'),
            "guest[0].phase[0].access.parts[0].distribution",
            "unknown distribution",
        ),
        ((ACCESS, 'distribution = "mixture", parts = [7]'), "guest[0].phase[0].access.parts[0]", "must be a table"),
        (('name = "rule"', 'name = "static"'), "arm[1].name", "already arm[0].name"),
        (('"paper"', '"papper"'), "arm[1].policy", "unknown policy 'papper'"),
        (('"paper"', '"no_such_module:policy"'), "arm[1].policy", "cannot load"),
        (('"paper"', '"paper"\nsettings = { gate = "ajar" }'), "arm[1].settings.gate", "none of 'literal'"),
        (('"paper"', '"paper"\nsettings = { gate = "ajar", a = 1 }'), "arm[1].settings", "unknown key"),
        (('"static"\n[[', '"static"\nsettings = { a = 1 }\n[['), "arm[0].settings.a", "has no settings"),
        (('"paper"', '"paper"\nbaselines = { g3 = "1GiB" }'), "arm[1].baselines.g3", "known are g1, g2"),
        (('"paper"', '"paper"\nbaselines = { g1 = "256MiB" }'), "arm[1].baselines.g1", "not between"),
        (('"paper"', '"paper"\nbaselines = { g1 = "2GiB" }'), "arm[1].baselines", "baselines of rule add up to 3G"),
        (("[experiment]", "experiment"), "", "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_file_key_and_hint(change, key, says):
    before, after = change
    text = mistake(GOOD.replace(before, after, 1))
    assert f"{FILE}: {key}" in text
    assert says in text


@pytest.mark.parametrize("kind", ["guest", "arm"])
def test_an_experiment_has_guests_and_arms(kind):
    others = GOOD.replace(f"[[{kind}]]", f"[[{kind}s]]").replace(f"[[{kind}.", f"[[{kind}s.")
    assert f"{kind}s: unknown table\n  hint: did you mean {kind}?" in mistake(others)
    none = mistake(f"{kind} = []\n" + others)
    assert f"{kind}: no {kind} is given\n  hint: add a [[{kind}]] table for each" in none


def test_all_mistakes_are_told_at_once():
    text = mistake(GOOD.replace("rounds = 10", "rounds = 0").replace('"paper"', '"papper"'))
    assert "guest[0].phase[0].rounds" in text
    assert "guest[1].phase[0].rounds" in text
    assert "arm[1].policy" in text


ODD = ["0", "-1", "1e300", "inf", "true", "''", "'x'", "'1GiB'", "[]", "[1]", "{}", "{ a = 1 }", "2000-01-01", "9" * 30]
KEYS = [line.split(" = ")[0] for line in GOOD.splitlines() if " = " in line]


@given(st.integers(0, len(KEYS) - 1), st.sampled_from(ODD))
def test_any_odd_value_is_taken_or_refused_in_words(at, odd):
    lines = [line for line in GOOD.splitlines() if line]
    places = [index for index, line in enumerate(lines) if " = " in line]
    lines[places[at]] = f"{KEYS[at]} = {odd}"
    told = None
    try:
        parsed("\n".join(lines))
    except ConfigError as error:
        told = str(error)
    # A name that is no longer the one referred to is a mistake elsewhere.
    assert told is None or any(key in told for key in (KEYS[at], "experiment.reference", "arm["))


@pytest.mark.parametrize("odd", ODD)
def test_any_odd_table_is_refused_in_words(odd):
    for table in ("experiment", "disk", "guest", "arm"):
        head = GOOD if table == "disk" else ""
        if not (table == "disk" and odd == "{}"):
            assert f"{table}" in mistake(f"{table} = {odd}\n{head}")


def test_a_configuration_is_told_from_an_experiment():
    said = mistake('[host]\nbudget = "1GiB"\n[[guest]]\nname = "web"\n')
    assert "this is a configuration, not an experiment" in said
    assert f"hint: qmpalloc run {FILE}" in said


def test_the_mark_that_some_editors_write_before_the_text_is_left_out(tmp_path):
    (tmp_path / "try.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert parsing.load(tmp_path / "try.toml").name == "try"


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        parsing.load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not a text file"):
        parsing.load(tmp_path / "binary.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        parsing.load(tmp_path)


def test_a_quarter_of_the_papers_experiment():
    found = scaling.scale(parsing.load(EXAMPLES / "paper-x2.toml"), Fraction(1, 4))
    assert found.scale == "1/4"
    assert found.budget == 1536 * MIB
    assert {(g.memory, g.floor, g.cap, g.baseline) for g in found.guests} == {
        (1280 * MIB, 256 * MIB, 1280 * MIB, 768 * MIB)
    }
    assert [phase.file for phase in found.guests[0].phases] == [512 * MIB, GIB]
    assert found.arms[1].settings["step"] == f"{25_000_000 // PAGE_BYTES * PAGE_BYTES}B"
    assert found.arms[1].settings["threshold"] == 500
    assert found.guests[0].phases[0].reads == 16000


def test_a_specification_can_be_kept_with_its_results():
    kept = to_plain(scaling.scale(parsing.load(EXAMPLES / "paper-x1.toml"), Fraction(1, 4)))
    assert kept["scale"] == "1/4"
    assert kept["guests"][0]["phase"][0]["access"] == {"distribution": "normal", "deviation": 0.3}
    assert msgspec.json.decode(msgspec.json.encode(kept))["arms"][1]["settings"]["threshold"] == 500


def test_a_step_left_at_its_default_is_scaled_too():
    found = scaling.scale(parsed(GOOD), Fraction(1, 2))
    assert found.arms[0].settings == {}
    assert found.arms[1].settings == {"step": f"{50_000_000 // PAGE_BYTES * PAGE_BYTES}B"}


def test_a_users_own_policy_is_scaled_if_it_has_sizes(tmp_path):
    (tmp_path / "own_scaled.py").write_text(
        "from msgspec import Struct\nfrom qmpalloc.config import Size\n"
        "class Own:\n"
        "    class Settings(Struct, kw_only=True):\n        amount: Size\n        count: int = 1\n"
        "    def __init__(self, settings): self.settings = settings\n"
        "    def decide(self, snapshot): ...\n"
        "def function(snapshot): ...\n"
        "ready = Own(None)\n"
    )
    text = GOOD.replace('"paper"', '"own_scaled:Own"\nsettings = { amount = "8MiB" }')
    text += '[[arm]]\nname = "b"\npolicy = "own_scaled:function"\n[[arm]]\nname = "c"\npolicy = "own_scaled:ready"\n'
    found = scaling.scale(parsing.parse(text, file=tmp_path / "x.toml"), Fraction(1, 2))
    assert [arm.settings for arm in found.arms[1:]] == [{"amount": f"{4 * MIB}B"}, {}, {}]


@given(st.fractions(min_value=Fraction(1, 4), max_value=2, max_denominator=40))
def test_what_fits_still_fits_when_scaled(factor):
    spec = parsed(GOOD + '[disk]\nsize = "1071MiB"\n')
    found = scaling.scale(spec, factor)
    assert sum(guest.baseline for guest in found.guests) <= found.budget <= spec.budget * factor
    for guest in found.guests:
        assert guest.floor <= guest.baseline <= guest.cap <= guest.memory
        assert guest.disk_bytes <= found.disk.size
        assert all(phase.file % MIB == 0 for phase in guest.phases)
    if factor != 1:
        assert parse_size(found.arms[1].settings["step"]) % PAGE_BYTES == 0


@pytest.mark.parametrize(
    ("factor", "says"), [("0", "not above 0"), ("-1/4", "not above 0"), ("1/1000", "at scale 1/1000")]
)
def test_a_scale_that_leaves_nothing_is_refused(factor, says):
    with pytest.raises(ConfigError, match=says):
        scaling.scale(parsed(GOOD), Fraction(factor))


def test_the_throttle_follows_the_service_time_of_a_hit():
    assert Disk(model="raw").throttle_iops(3e-5) == 0
    assert Disk(model="ssd").throttle_iops(4e-5) == 500
    assert Disk(model="hdd").throttle_iops(4e-5) == 5
    assert Disk(iops=1234).throttle_iops(4e-5) == 1234


def test_guests_that_the_host_cannot_hold_are_refused_with_a_scale_that_it_can():
    spec = parsed(GOOD)
    check_memory(spec, 4 * GIB + 2 * 128 * MIB)
    with pytest.raises(ConfigError, match=r"guest\[0\]\.memory: the memory of all guests adds up to 4G") as caught:
        check_memory(spec, 3 * GIB)
    assert caught.value.hint.endswith("--scale 1/2")
    with pytest.raises(ConfigError) as caught:
        check_memory(scaling.scale(spec, Fraction(1, 2)), GIB)
    assert caught.value.hint.endswith("--scale 1/6")
    with pytest.raises(ConfigError):
        check_memory(spec, 0)


@pytest.mark.parametrize(("size", "name"), [("3GiB", "3G"), ("1.5GiB", "1536M"), ("20KiB", "20K"), ("5001B", "5001")])
def test_a_file_without_a_name_is_named_after_its_size(size, name):
    assert parsed(GOOD.replace('file = "1GiB"', f'file = "{size}"')).guests[0].files.keys() == {f"file-{name}.dat"}


def test_names_that_were_given_are_kept_when_scaled():
    text = GOOD.replace("[[guest.phase]]\n", '[[guest.phase]]\nfile_name = "a"\n', 1)
    found = scaling.scale(parsed(text), Fraction(1, 2))
    assert [guest.files for guest in found.guests] == [{"a": 512 * MIB}, {"file-512M.dat": 512 * MIB}]


@pytest.mark.parametrize(
    ("change", "reads_ahead"),
    [
        ((ACCESS, ACCESS), False),
        ((ACCESS, 'distribution = "sequential"'), True),
        ((ACCESS, 'distribution = "loop", share = 0.5'), True),
        (("rounds = 10", "rounds = 10\nreadahead = true"), True),
        ((f"{{ {ACCESS} }}", '{ distribution = "sequential" }\nreadahead = false'), False),
    ],
)
def test_scans_read_ahead_unless_told_otherwise(change, reads_ahead):
    assert parsed(GOOD.replace(*change, 1)).guests[0].phases[0].reads_ahead is reads_ahead
