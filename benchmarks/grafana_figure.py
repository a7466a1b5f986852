"""Draw what the Grafana dashboard shows of a recorded run: the queries of all its panels, answered by a Prometheus.

    python benchmarks/grafana_figure.py runs/NAME-TIME/record.jsonl docs/grafana.svg

What a scrape would have found every `SCRAPE_S` goes into a database of Prometheus, at the times of the record. Titles,
places, queries and units are the dashboard's; lines and colours are matplotlib's, not Grafana's. ``prometheus`` and
``promtool`` must be in PATH: ``scripts/newer_programs.py`` prints a directory that has them.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
from belief_figure import GRID, INK, PAPER, as_svg
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qmpalloc.experiment.report.figures.style import COLOURS, style
from qmpalloc.files import write_whole
from qmpalloc.metrics.families import families
from qmpalloc.record import read_record
from qmpalloc.status.feed import Feed
from qmpalloc.units import format_count, format_size

PANELS = json.loads((Path(__file__).parents[1] / "examples/grafana.json").read_text())["panels"]
SCRAPE_S = 2.0
RATE = f"{4 * SCRAPE_S:g}s"  # what Grafana puts for $__rate_interval
ADDRESS = "127.0.0.1:19090"
START_LIMIT_S = 120
WIDTH_IN, ROW_IN, COLUMNS = 10.0, 0.27, 24
UNITS: dict[str, Callable[[float], str]] = {
    "bytes": format_size,
    "Bps": lambda value: f"{format_size(value)}/s",
    "percentunit": lambda value: f"{100 * value:.3g} %",
    "s": lambda value: f"{value:.3g} s",
    "ops": lambda value: f"{format_count(value)}/s",
    "none": format_count,
}


def scrapes(record: Path) -> Iterator[tuple[float, str]]:
    """Yield the time of each scrape, and what it finds as OpenMetrics."""
    feed, due = Feed(), 0.0
    for event in read_record(record):
        due = due or event.wall + SCRAPE_S
        while due < event.wall:
            text = ""
            for sample in (sample for metric in families(feed.now()) for sample in metric.samples):
                labels = {"job": "qmpalloc", **sample.labels}.items()
                told = ",".join(f"{name}={json.dumps(value)}" for name, value in labels)
                text += f"{sample.name}{{{told}}} {sample.value} {due:.3f}\n"
            yield due, text
            due += SCRAPE_S
        feed(event)


def serve(directory: Path, text: str) -> subprocess.Popen[bytes]:
    """Start a Prometheus that has these samples, and wait until it answers."""
    (directory / "metrics").write_text(text + "# EOF\n")
    (directory / "none.yml").write_text("{}")
    make = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "metrics", "data"]
    subprocess.run(make, cwd=directory, check=True, stdout=subprocess.DEVNULL)
    keep = ["--storage.tsdb.path=data", "--storage.tsdb.retention.time=100y"]  # else what is old is removed
    command = ["prometheus", "--config.file=none.yml", f"--web.listen-address={ADDRESS}", *keep]
    server = subprocess.Popen(command, cwd=directory, stderr=subprocess.DEVNULL)
    for _ in range(START_LIMIT_S):
        with suppress(OSError):
            get("/-/ready")
            return server
        time.sleep(1)
    server.kill()
    raise SystemExit("Prometheus does not start")


def get(path: str, **parameters: object) -> bytes:
    """Return what Prometheus says."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback goes through no proxy
    with opener.open(f"http://{ADDRESS}{path}?{urllib.parse.urlencode(parameters)}") as reply:
        return bytes(reply.read())


def series(target: dict[str, str], begin_s: float, end_s: float) -> Iterator[tuple[str, list[float], list[float]]]:
    """Yield the legend, the times and the values of each series of a panel's query."""
    query = target["expr"].replace("$job", "qmpalloc").replace("$guest", ".*").replace("$__rate_interval", RATE)
    reply = json.loads(get("/api/v1/query_range", query=query, start=begin_s, end=end_s, step=SCRAPE_S))
    for found in reply["data"]["result"]:
        legend = target["legendFormat"]
        for name, value in found["metric"].items():
            legend = legend.replace(f"{{{{{name}}}}}", value)
        yield legend, [t - begin_s for t, _ in found["values"]], [float(value) for _, value in found["values"]]


def draw(axes: Axes, panel: dict[str, Any], found: list[tuple[str, list[float], list[float]]]) -> None:
    """Draw a panel: its last values as text, or its series over seconds of the run."""
    defaults = panel["fieldConfig"]["defaults"]
    unit, custom = UNITS[defaults["unit"]], defaults.get("custom", {})
    axes.set_title(panel["title"], loc="left")
    if panel["type"] == "stat" or not found:
        only_name = panel.get("options", {}).get("textMode") == "name"
        told = "   ".join(name if only_name else f"{name} {unit(values[-1])}" for name, _, values in found)
        axes.text(0.5, 0.5, told or "No data", ha="center", va="center", fontsize=13 if found else 9)
        axes.set_axis_off()
        return
    if panel["type"] == "state-timeline":
        for row, (name, times, _) in enumerate(found):
            axes.broken_barh(
                [(t, SCRAPE_S) for t in times], (-row, 0.8), color=COLOURS[row % len(COLOURS)], alpha=0.5, lw=0
            )
            axes.text(0, 0.4 - row, f" {name}", va="center")
        axes.set_yticks([])
        return
    axes.set_prop_cycle(color=COLOURS)
    if "stacking" in custom:
        axes.stackplot(
            found[0][1], *(values for _, _, values in found), labels=[each[0] for each in found], alpha=0.5, step="post"
        )
    else:
        drawn = "steps-post" if custom.get("lineInterpolation") == "stepAfter" else "default"
        for name, times, values in found:
            axes.plot(times, values, label=name, drawstyle=drawn, linewidth=1.2)
    axes.set_ylim(bottom=defaults.get("min"), top=defaults.get("max"))
    axes.yaxis.set_major_formatter(lambda value, _: unit(value))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, fontsize=7, handlelength=1, columnspacing=1)


@click.command()
@click.argument("record", type=click.Path(path_type=Path))
@click.argument("svg", type=click.Path(path_type=Path))
def main(record: Path, svg: Path) -> None:
    """Write the figure."""
    found = list(scrapes(record))
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in PANELS)
    with style(), tempfile.TemporaryDirectory() as directory:
        server = serve(Path(directory), "".join(text for _, text in found))
        mpl.rcParams.update(dict.fromkeys(("text.color", "xtick.color", "ytick.color", "axes.edgecolor"), INK))
        mpl.rcParams.update({"axes.facecolor": PAPER, "grid.color": GRID, "xtick.labelsize": 8, "ytick.labelsize": 8})
        figure = Figure(figsize=(WIDTH_IN, rows * ROW_IN), facecolor=PAPER)
        for panel in PANELS:
            x, y, width, height = (panel["gridPos"][key] for key in "xywh")
            box = ((x + 1.6) / COLUMNS, 1 - (y + height - 1.9) / rows, (width - 2.2) / COLUMNS, (height - 3.1) / rows)
            shown = [each for target in panel["targets"] for each in series(target, found[0][0], found[-1][0])]
            draw(figure.add_axes(box), panel, shown)
        server.kill()
        server.wait()
        write_whole(svg, as_svg(figure).encode())


if __name__ == "__main__":
    main()
