"""Metrics of made-up runs: names, units, labels; the Grafana dashboard asks for nothing that is not there."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from qmpalloc import cli
from qmpalloc.events import Decided, Reloaded, Sampled
from qmpalloc.metrics.families import families
from qmpalloc.model import HostMemory
from qmpalloc.sample import Psi
from qmpalloc.status.feed import Feed
from qmpalloc.units import GIB, MIB
from tests.tui import synthetic

UNITS = ("_bytes", "_seconds", "_total", "_info", "_state", "_in_danger")
SERIES_MAX = 40


def feed_of(events):
    feed = Feed()
    for event in events:
        feed(event)
    return feed


class _Registered:
    def __init__(self, feed):
        self.feed = feed

    def collect(self):
        return families(self.feed.now())


def scraped(feed):
    """What a scrape would bring: ``{(name, labels): value}``."""
    registry = CollectorRegistry()
    registry.register(_Registered(feed))
    parsed = text_string_to_metric_families(generate_latest(registry).decode())
    return {(each.name, frozenset(each.labels.items())): each.value for family in parsed for each in family.samples}


def telling_all(events):
    """The events, with what made-up guests and hosts leave out."""
    psi, host = (
        Psi(some_total_us=3_000_000, full_total_us=1_000_000),
        HostMemory(total_bytes=GIB, available_bytes=MIB, stalled_us=2_000_000),
    )
    for event in events:
        if isinstance(event, Sampled):
            yield replace(event, sample=replace(event.sample, psi_memory=psi, oom_kills=0))
        elif isinstance(event, Decided):
            guests = tuple(replace(guest, resident_bytes=MIB) for guest in event.snapshot.guests)
            yield replace(event, snapshot=replace(event.snapshot, guests=guests, host=host))
        else:
            yield event


@pytest.fixture(scope="module")
def values():
    return scraped(feed_of(telling_all(synthetic.run(3, 60))))


def of(values, name, **labels):
    return values[f"qmpalloc_{name}", frozenset(labels.items())]


def test_before_a_run_begins_there_is_nothing():
    assert scraped(Feed()) == {}


def test_names_have_units_and_labels_few_values(values):
    for name, labels in values:
        assert name.startswith("qmpalloc_")
        assert name.endswith(UNITS), name
        assert {key for key, _ in labels} <= {"guest", "state", "cause", "tasks", "mode", "policy", "version"}
    of_guest = [labels for _, labels in values if dict(labels).get("guest") == "web"]
    assert 20 < len(of_guest) <= SERIES_MAX


def test_values_are_those_of_the_events(values):
    events = synthetic.run(3, 60)
    summary = feed_of(events).now().summary
    assert of(values, "decisions_total") == summary.decisions
    assert of(values, "samples_total") == summary.samples
    last = [event for event in events if isinstance(event, Sampled) and event.guest == "web"][-1]
    assert of(values, "guest_page_ins_total", guest="web", cause="read") == last.sample.counters.inserts_read
    assert of(values, "guest_accesses_total", guest="web") == last.sample.counters.accesses
    assert of(values, "guest_sample_timestamp_seconds", guest="web") == pytest.approx(last.wall)
    assert of(values, "guest_memory_stalled_seconds_total", guest="web", tasks="some") == 3.0
    assert of(values, "host_memory_stalled_seconds_total") == 2.0


def test_a_state_is_1_for_one_of_all(values):
    states = [value for (name, labels), value in values.items()
              if name == "qmpalloc_guest_state" and ("guest", "web") in labels]  # fmt: skip
    assert sorted(states) == [0.0] * (len(states) - 1) + [1.0]


def test_what_a_guest_does_not_tell_is_absent():
    feed = feed_of(synthetic.run(1, 0))
    assert not [name for name, _ in scraped(feed) if name == "qmpalloc_guest_accesses_total"]


def test_a_guest_that_left_or_has_another_name_has_no_series_of_the_old():
    feed = feed_of(synthetic.run(2, 30))
    header = feed.now().header
    first = replace(header.guests[0], name="new")
    feed(Reloaded(t=31, wall=31, budget_bytes=7, guests=(first,), renamed={header.guests[0].name: "new"}))
    values = scraped(feed)
    assert {dict(labels)["guest"] for _, labels in values if dict(labels).get("guest")} == {"new"}
    assert of(values, "budget_bytes") == 7


def test_a_copy_does_not_change():
    feed = feed_of(synthetic.run(2, 30))
    before = feed.now()
    count = before.summary.samples
    for event in synthetic.run(2, 40)[-20:]:
        feed(event)
    assert before.summary.samples == count


def test_every_metric_of_the_dashboard_exists(values):
    dashboard = json.loads((Path(__file__).parents[2] / "examples/grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    used = {name for text in expressions for name in re.findall(r"qmpalloc_\w+", text)}
    assert len(used) > 15
    assert used <= {name for name, _ in values}
    labels = {key for _, labels in values for key, _ in labels} | {"job"}
    assert {key for text in expressions for key in re.findall(r"[{,]\s*(\w+)=", text)} <= labels


@pytest.mark.parametrize("value", ["9177", "localhost:", ":9177", "127.0.0.1:99999", "127.0.0.1:x"])
def test_an_address_that_is_none(value):
    result = CliRunner().invoke(cli.main, ["run", "--metrics", value, "x.toml"])
    assert result.exit_code == 2
