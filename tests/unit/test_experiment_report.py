"""Reports: every sentence where it belongs, whatever is missing; tables that other programs read back."""

import builtins
import csv
import io
import json
import re
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_experiment import MadeUp
from msgspec import structs

from qmpalloc.errors import HostError
from qmpalloc.experiment.analysis.results import load_results
from qmpalloc.experiment.report import write_report
from qmpalloc.experiment.report.conditions import describe
from qmpalloc.experiment.report.figures.forest import forest_rows
from qmpalloc.experiment.report.html import html
from qmpalloc.experiment.report.markdown import bullets, document, escaped, heading, paragraph, picture
from qmpalloc.experiment.report.markdown import table as markdown_table
from qmpalloc.experiment.report.trials_csv import COLUMNS
from qmpalloc.experiment.report.words import spread, whole
from qmpalloc.experiment.spec.access import Mixture, Normal, Part, Zipf
from qmpalloc.experiment.spec.plan import ArmRun
from qmpalloc.experiment.store.records import DiskCalibration

HOSTILE = "<script>alert('x')</script> | `code` [a](http://evil.example) \x1b[31m *bold*"


@pytest.fixture
def made_up(tmp_path):
    return MadeUp(tmp_path / "out")


def written(made_up, name="report.md"):
    write_report(made_up.directory, figures=False)
    return (made_up.directory.path / name).read_text()


def summary(made_up):
    return json.loads(written(made_up, "summary.json"))


def section(text, title):
    """Return the part of a Markdown report under a heading."""
    return re.split(r"^## ", text.split(f"## {title}", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def row(text, label):
    """Return the cells of a table's row."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


# --- what a report says -----------------------------------------------------------------------------------------------


def test_the_order_of_a_report(made_up):
    write_report(made_up.all_runs().directory)
    text = (made_up.directory.path / "report.md").read_text()
    titles = re.findall(r"^##? (.*?)$", text, flags=re.MULTILINE)
    assert titles == [
        "Experiment made-up", "Verdict", "How to read this", "Figures", "The arms", "The phases", "How memory moved",
        "What the loads touch", "What a miss costs", "Do the counts agree with the disk?", "Failed runs",
        "What is incomplete", "Conditions",
    ]  # fmt: skip
    assert text.startswith(
        "# Experiment made-up\n\nScale 1/4, seed 1, n = 3.\n\n![The arms beside static](figures/forest"
    )
    assert len(re.findall("(?i)scale 1/4|seed 1|n = 3", text.replace("--scale 1/4", ""))) == 3  # all of it said once
    assert "[Do the counts agree with the disk?](#do-the-counts-agree-with-the-disk)" in text.split("## How to")[0]


def test_the_best_arm_comes_first(tmp_path):
    made_up = MadeUp(tmp_path / "out", arms=("static", "rule", "curve", "oracle")).all_runs()
    verdict = section(written(made_up), "Verdict")
    results = load_results(made_up.directory)
    times = [comparison.time.value for comparison in results.comparisons]
    assert times == sorted(times)
    assert re.findall(r"\*\*(\w+) finished", verdict) == [comparison.arm for comparison in results.comparisons]
    assert [arm for arm, _ in forest_rows(results)[0][1]] == [comparison.arm for comparison in results.comparisons]


def test_the_verdict_comes_first_and_says_what_the_statistics_say(made_up):
    verdict = section(written(made_up.all_runs()), "Verdict")
    assert re.search(r"\*\*rule finished in \d\.\d\d \(\d\.\d\d to \d\.\d\d\) of the static time: ", verdict)
    assert re.search(r"Of the misses of static it had \d\.\d\d \(.*\)\.", verdict)
    assert re.search(r"It had more hits in \d+ of \d+, \d+ of \d+, \d+ of \d+ trials\.", verdict)
    assert "not complete" not in verdict
    assert " failed " not in verdict


def test_one_repeat_decides_nothing(tmp_path):
    verdict = section(written(MadeUp(tmp_path / "out", repeats=1).all_runs()), "Verdict")
    assert "of the static time: one repeat decides nothing.**" in verdict
    assert re.search(r"more hits in \d+ of \d+ trials\.", verdict)


def test_a_failed_repeat_is_told_with_its_cause_and_left_out(made_up):
    for repeat in (1, 2, 3):
        made_up.run("static", repeat).run(
            "rule", repeat, failed="guest g1: QEMU ended" if repeat == 2 else "", until=99
        )
    text = written(made_up)
    assert "1 run failed and is left out; see below." in text
    assert "- rule, repeat 2: guest g1: QEMU ended" in section(text, "Failed runs")
    assert row(text, "Repeats that count") == ["3 of 3", "2 of 3"]
    assert "n = 3 (static), 2 (rule)" in text
    found = summary(made_up)
    assert found["failed"] == [{"arm": "rule", "repeat": 2, "cause": "guest g1: QEMU ended"}]
    assert found["complete"] is False
    assert {(line["arm"], line["repeat"]) for line in table(made_up)} == {
        ("static", "1"), ("static", "2"), ("static", "3"), ("rule", "1"), ("rule", "3"),
    }  # fmt: skip


def test_runs_that_were_not_run_or_interrupted_are_missing(made_up):
    made_up.run("static", 1).run("rule", 1, ended=False, until=3)
    text = written(made_up)
    assert "This is not complete: of 6 planned runs, 5 are missing." in text
    assert "rule cannot be compared: no repeat has a result of both rule and static." in text
    assert "- rule, repeat 1: not run to its end" in section(text, "What is incomplete")
    assert {"arm": "rule", "repeat": 1} in summary(made_up)["missing"]


def test_a_phase_that_did_not_end_is_said_and_its_run_is_not_compared(made_up):
    made_up.run("static", 1).run("rule", 1, until=8)
    text = written(made_up)
    assert "in none of 1 repeats did it and static both finish" in text
    incomplete = section(text, "What is incomplete")
    assert "- rule, repeat 1: phase second of g2 did not begin" in incomplete
    assert "- rule, repeat 1: phase first of g2 did not end" in incomplete
    assert row(text, "Time to finish")[1] == "-"
    assert row(text, "Hits in all")[1] == "-"


def test_nothing_finished_at_all(made_up):
    text = written(made_up)
    assert "No run has ended that counts: there is nothing to compare yet." in text
    assert row(text, "Time to finish") == ["-", "-"]
    assert summary(made_up)["arms"][0]["repeats"] == []
    assert table(made_up) == []


def test_an_experiment_of_the_reference_alone_has_nothing_to_compare(tmp_path):
    text = written(MadeUp(tmp_path / "out", arms=("static",), repeats=1).all_runs())
    assert "Only static was run: there is nothing to compare." in text


def test_missing_readings_are_said(made_up):
    made_up.run("static", 1).run("rule", 1, silent=[("g1", 3)], restarted=[("g2", 5)])
    text = section(written(made_up), "What is incomplete")
    assert "g1 gave no reading at the end of trial 3: its row 4 covers it as well" in text
    assert "counters of g2 began anew in trial 5, of which nothing is counted" in text
    hits = summary(made_up)["arms"][1]["repeats"][0]["hits_by_trial"]
    assert [number for number, value in enumerate(hits, 1) if value is None] == [3, 4, 5]
    assert summary(made_up)["comparisons"][0]["hits"] is None
    assert [summary(made_up)["arms"][1]["repeats"][0][key] for key in ("hits", "misses", "hit_ratio")] == [None] * 3
    assert [row(written(made_up), label)[1] for label in ("Misses in all", "Hit ratio")] == ["-", "-"]


def test_a_missing_reading_costs_no_hit_in_all(made_up):
    made_up.run("static", 1, silent=[("g1", 3)]).run("rule", 1)
    assert summary(made_up)["comparisons"][0]["hits"]["n"] == 1


def test_the_phases_table_gives_the_trial_of_every_phase(made_up):
    text = section(written(made_up.all_runs()), "The phases")
    results = load_results(made_up.directory)
    first = sorted(run.guests["g1"].phases[0].trial for run in results.counted("static"))
    assert row(text, "g1: first (512M file)")[0].split(" ")[0] == str(first[1])
    text = section(written(made_up), "The arms")
    assert [cell.split(" ")[0] for cell in row(text, "Trials to finish")] == [
        str(sorted(run.trials_to_finish for run in results.counted(arm))[1]) for arm in ("static", "rule")
    ]
    assert row(text, "Trials with more hits")[0] == "-"
    assert row(text, "Trials with more hits")[1].count(" of ") == 3
    assert re.search(r" s \(.*\); ratio \d\.\d\d \(\d\.\d\d to \d\.\d\d\)$", row(text, "Time to finish")[1])


def test_the_disk_is_told_as_asked_and_as_reached(made_up):
    text = section(written(made_up.all_runs()), "What a miss costs")
    assert "a miss should take 50 times as long as a hit" in text
    assert "throttled to 500 operations per second" in text
    assert row(text, "static") == ["50", "50", "40 µs", "2,000 µs", "2,000 µs", "50"]


@pytest.mark.parametrize(
    ("lies", "flag", "said"), [(1.02, "agrees", "both agree within 3 %"), (1.1, "doubtful", "More than 3 % apart")]
)
def test_the_disk_is_a_witness(tmp_path, lies, flag, said):
    made_up = MadeUp(tmp_path / "out", repeats=1).all_runs(disk_lies=lies)
    text = section(written(made_up), "Do the counts agree with the disk?")
    assert row(text, "static, g1")[2:] == [f"{(lies - 1) * 100:+.1f} %", "0", flag]
    assert said in text


def test_a_run_that_disagrees_with_its_disk_is_not_made_up_for_by_another(made_up):
    made_up.run("static", 1, disk_lies=1.05).run("static", 2, disk_lies=0.95)
    text = section(written(made_up), "Do the counts agree with the disk?")
    apart, _, word = row(text, "static, g1")[2:]
    assert (apart[1:], word) == ("0.0 % (-5.0 % to +5.0 %)", "doubtful")


def test_a_disk_without_a_throttle_or_not_yet_measured_is_said(made_up):
    made_up.directory.write_disk(DiskCalibration(model="raw", hit_s=4e-5, iops=0))
    assert "Disk model raw: the data disks are not throttled." in written(made_up)
    assert summary(made_up)["disk"]["ratio_asked"] is None
    (made_up.directory.path / "disk.json").unlink()
    assert "The disk was not measured yet." in written(made_up)
    assert summary(made_up)["disk"] is None


def test_a_disk_that_read_next_to_nothing_is_no_witness(made_up):
    made_up.run("static", 1).run("rule", 1, until=1, disk_lies=50.0)
    readings = made_up.directory.run(ArmRun(1, "rule")).readings()
    assert (readings[-2].guest, readings[-2].misses) == ("g1", 500)  # the warm one
    text = section(written(made_up), "Do the counts agree with the disk?")
    assert row(text, "rule, g1")[-1] == "too little to tell"
    assert row(text, "rule, g2")[-1] == "doubtful"


def test_conditions_name_scale_seed_versions_host_images_and_command(made_up):
    text = section(written(made_up.all_runs()), "Conditions")
    for words in ("QEMU 7.2.15", "processors 2", "g1 tcg", "6.12.48 0123abcd", "--scale 1/4"):
        assert words in text.replace("\\", "")
    assert "CPU of the controller while the loads ran: 2.0 % of one core" in text
    assert row(text, "g1: first")[0] == "normal, deviation 0.3"


def test_sizes_are_for_people(tmp_path):
    made_up = MadeUp(tmp_path / "out", host={"memory_bytes": 25276059648, "processors": 2}, repeats=1).all_runs()
    text = written(made_up)
    assert "Host: memory 23.5G, processors 2." in text
    assert "step 23.8M" in text  # a quarter of the paper's 100 MB, which a scaled file has as 25000000B
    assert not re.search(r"\d{7,}", text)


def test_a_mixture_is_described():
    mixture = Mixture(parts=(Part(weight=3, access=Zipf()), Part(weight=1, access=Normal(deviation=0.1))))
    assert describe(mixture) == "mixture of 3 parts zipf, exponent 1; 1 parts normal, deviation 0.1"


def test_a_file_that_cannot_be_read_fails_its_run_only(made_up):
    made_up.run("static", 1).run("rule", 1)
    place = made_up.directory.run(ArmRun(1, "rule"))
    place.readings_file.write_text('{"trial": "x"}\n')
    assert "rule, repeat 1: its files cannot be used" in section(written(made_up), "Failed runs").replace("\\", "")


@pytest.mark.parametrize(
    ("values", "text"),
    [([], "-"), ([None], "-"), ([3], "3"), ([3, 4], "3.5 (3 to 4)"), ([3, None, 5], "4 (3 to 5; in 2 of 3)")],
)
def test_medians_come_with_their_range_and_what_is_missing(values, text):
    assert spread(values, whole) == text


# --- the files --------------------------------------------------------------------------------------------------------


def table(made_up):
    return list(csv.DictReader(io.StringIO(written(made_up, "trials.csv"))))


def test_the_table_of_trials_begins_with_the_agreed_columns(made_up):
    heading = written(made_up.all_runs(), "trials.csv").splitlines()[0]
    assert heading.startswith("arm,repeat,trial,guest,hits,misses,target_bytes,actual_bytes,")
    assert tuple(heading.split(",")) == COLUMNS


def test_the_table_of_trials_reads_back_to_what_was_counted(made_up):
    rows = table(made_up.all_runs())
    results = load_results(made_up.directory)
    for arm in ("static", "rule"):
        for run in results.counted(arm):
            own = [line for line in rows if (line["arm"], line["repeat"]) == (arm, str(run.run.repeat))]
            assert sum(int(line["hits"]) for line in own) == run.counts.hits
            assert sum(int(line["misses"]) for line in own) == run.counts.misses
            assert [int(line["trial"]) for line in own] == sorted(int(line["trial"]) for line in own)
            assert all(line["refaults"] == "" for line in own)


def test_the_summary_holds_the_numbers_of_the_report(made_up):
    found = summary(made_up.all_runs())
    assert (found["format"], found["version"], found["complete"]) == ("qmpalloc-experiment-summary", 1, True)
    asked = {"model": "ssd", "iops": 500, "hit_s": 4e-05, "ratio_asked": 50.0}
    assert found["disk"] == {**asked, "by": "reads", "programs": {}}
    comparison = found["comparisons"][0]
    assert comparison["verdict"].startswith(f"rule finished in {comparison['time']['value']:.2f} (")
    repeat = found["arms"][1]["repeats"][2]
    assert repeat["finished"]["g1"]["second"] <= repeat["trials_to_finish"] == len(repeat["hits_by_trial"])
    assert sum(repeat["hits_by_trial"]) == repeat["hits"]


def test_writing_again_changes_nothing(made_up):
    files = write_report(made_up.all_runs().directory)
    before = {path: path.read_bytes() for path in files}
    assert {path: path.read_bytes() for path in write_report(made_up.directory)} == before
    assert not [path for path in made_up.directory.path.rglob(".*") if path.is_file()]


def test_figures_of_everything(made_up):
    files = {path.name for path in write_report(made_up.all_runs().directory)}
    names = ("forest", "hits", "memory", "phases")
    assert {f"{name}.{kind}" for name in names for kind in ("svg", "png")} < files
    svg = (made_up.directory.path / "figures" / "hits.svg").read_text()
    assert "<dc:title>Hits by trial; experiment made-up: Scale 1/4, seed 1, n = 3.</dc:title>" in svg
    assert "dc:date" not in svg


def test_figures_of_a_troubled_experiment(made_up):
    made_up.run("static", 1, until=8).run("rule", 1, silent=[("g1", 0), ("g2", 5)]).run("rule", 2, ended=False, until=2)
    assert any(path.name == "phases.svg" for path in write_report(made_up.directory))


def test_a_place_that_cannot_be_written_is_named(made_up):
    (made_up.all_runs().directory.path / "figures").write_text("")
    with pytest.raises(HostError, match="figures cannot be written"):
        write_report(made_up.directory)


def test_no_figures_of_nothing(made_up):
    assert [path.name for path in write_report(made_up.directory)] == [
        "trials.csv", "report.md", "report.html", "summary.json",
    ]  # fmt: skip
    assert "There is nothing to draw yet." in (made_up.directory.path / "report.md").read_text()


def test_without_matplotlib_the_report_says_how_to_get_it(made_up, monkeypatch):
    original = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    for name in [name for name in sys.modules if "experiment.report.figures" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    write_report(made_up.all_runs().directory)
    assert "pip install 'qmpalloc[analysis]'" in (made_up.directory.path / "report.md").read_text().replace("\\", "")


# --- escaping ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.anchors, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.anchors += [value for name, value in attrs if name == "id" and tag == "h2"]
        self.sources += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else_and_runs_nothing(made_up):
    made_up.all_runs()
    write_report(made_up.directory)
    page = Page((made_up.directory.path / "report.html").read_text())
    pictures = [source for source in page.sources if source.startswith("data:image/svg+xml;base64,")]
    assert len(pictures) == 4
    links = {source for source in page.sources if source not in pictures}
    assert {"#verdict", "#do-the-counts-agree-with-the-disk"} < links == {f"#{each}" for each in page.anchors}
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_a_hostile_cause_and_a_hostile_host_are_only_text(tmp_path):
    made_up = MadeUp(tmp_path / "out", host={HOSTILE: HOSTILE}, command=HOSTILE, repeats=1)
    made_up.run("static", 1).run("rule", 1, failed=HOSTILE)
    page = Page(written(made_up, "report.html"))
    assert "script" not in page.tags
    assert "<script>alert('x')</script>" in page.text
    assert "\x1b" not in page.text
    text = written(made_up)
    assert "<script" not in text.replace("\\<", "")
    assert not re.search(r"(?<!\\)\]\(http", text)


@given(st.lists(st.text(min_size=1), min_size=2, max_size=2))
def test_any_text_stays_in_its_cell(cells):
    blocks = [
        markdown_table(cells[0], ("a", "b"), [cells]),
        heading(cells[0]),
        paragraph(cells[1]),
        bullets(cells),
    ]
    lines = document(blocks).splitlines()
    rows = [line for line in lines if re.match(r"\| ", line)]
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3 for line in rows)
    page = Page(html(document(blocks), title=cells[0], picture=lambda file: b""))
    assert page.tags.count("td") == 2
    assert set(page.tags) <= {
        "html", "head", "meta", "title", "style", "body", "main", "table", "thead", "tbody", "tr", "th", "td", "h2",
        "p", "ul", "li",
    }  # fmt: skip


def test_a_line_of_a_cell_ends_between_figures_and_not_in_one():
    cells = ("mean (s)", "342.2 s (339.6 s to 344.0 s); ratio 1.01 (0.96 to 1.06)")
    page = html(document([markdown_table("t", ("", "static"), [cells])]), title="t", picture=lambda file: b"")
    told = re.search(r'<td style="text-align:right">(.*)</td>', page)[1]
    assert [part.replace("\xa0", " ") for part in told.split(" ")] == [
        "342.2 s", "(339.6 s to 344.0 s);", "ratio 1.01", "(0.96 to 1.06)",
    ]  # fmt: skip
    assert "<td>mean (s)</td>" in page


def test_markup_is_escaped_in_markdown():
    assert escaped("a_b|c\n# `d` <e> [f](g) $h$") == r"a\_b\|c \# \`d\` \<e\> \[f\](g) \$h\$"
    assert picture("figures/x.svg", "title", "text") == "![title](figures/x.svg)\n\n*title.* text"


@pytest.mark.parametrize("how", ["cut", "removed"])
def test_readings_that_were_cut_after_their_run_make_it_fail(made_up, how):
    for repeat in (1, 2, 3):
        made_up.run("static", repeat).run("rule", repeat)
    file = made_up.directory.path / "runs" / "repeat2-rule" / "readings.jsonl"
    if how == "cut":
        file.write_bytes(file.read_bytes()[:3_000])
    else:
        file.unlink()
    text = written(made_up)
    assert "1 run failed and is left out; see below." in text
    assert re.search(r"- rule, repeat 2: its files cannot be used: .*readings.jsonl: ends after \d+ s of \d+ s", text)
    assert summary(made_up)["complete"] is False
    assert [run.name for run in made_up.directory.left()] == ["repeat2-rule"]


def test_loads_that_end_while_they_are_read_for_the_last_time_end_after_their_last_trial(made_up):
    place = made_up.run("rule", 1).directory.run(ArmRun(1, "rule"))
    readings = place.readings()
    late_s = max(reading.t for reading in readings) - place.outcome().load_s + 0.2
    place.readings_file.unlink()
    place.append_readings([structs.replace(reading, t=max(0.0, reading.t - late_s)) for reading in readings])
    (run,) = load_results(made_up.directory).counted("rule")
    assert run.seconds > max(row.end_s for guest in run.guests.values() for row in guest.trials.trials)
