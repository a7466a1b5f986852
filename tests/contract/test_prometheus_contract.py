"""A real Prometheus scrapes a run's metrics, and answers every question of the Grafana dashboard."""

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import trio

pytest.importorskip("prometheus_client")

from qmpalloc.metrics.exporter import Exporter, listen
from qmpalloc.status.feed import Feed
from tests.tui import synthetic

PROMETHEUS = shutil.which("prometheus")
DASHBOARD = json.loads((Path(__file__).parents[2] / "examples/grafana.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
START_LIMIT_S = 60

pytestmark = pytest.mark.skipif(
    PROMETHEUS is None, reason="prometheus is not installed (scripts/newer_programs.py has it)"
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetched(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback goes through no proxy
    try:
        with opener.open(url, timeout=20) as reply:
            return reply.read()
    except urllib.error.HTTPError as error:  # 503 while it starts; the error is the reply, and holds its socket
        error.close()
        raise


class Prometheus:
    """Its query API."""

    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}"

    async def get(self, path, **parameters):
        url = f"{self.base}{path}?{urllib.parse.urlencode(parameters)}"
        return json.loads(await trio.to_thread.run_sync(fetched, url))

    async def query(self, expression):
        reply = await self.get("/api/v1/query", query=expression)
        assert reply["status"] == "success"
        return reply["data"]["result"]

    async def until(self, expression):
        """Wait for a first value."""
        with trio.fail_after(START_LIMIT_S):
            while True:
                try:
                    if result := await self.query(expression):
                        return result
                except OSError:
                    pass  # it still starts
                await trio.sleep(0.2)


async def go_on(feed):
    """Let a made-up run go on, five times as fast as it says."""
    t = 30.0
    for event in synthetic.run(3, 600):
        if event.t > t:
            await trio.sleep((event.t - t) / 5)
            t = event.t
        feed(event)


@pytest.fixture
async def prometheus(tmp_path, nursery):
    """Prometheus, scraping a made-up run once a second."""
    feed = Feed()
    nursery.start_soon(go_on, feed)
    (listener,) = await listen("127.0.0.1", 0)
    target = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    nursery.start_soon(Exporter(feed, lambda *_: None).serve, [listener])
    file, port = tmp_path / "prometheus.yml", free_port()
    jobs = [{"job_name": "qmpalloc", "static_configs": [{"targets": [target]}]}]
    file.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))  # JSON is YAML
    options = [
        f"--config.file={file}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = await trio.lowlevel.open_process([PROMETHEUS, *options], stdout=log, stderr=subprocess.STDOUT)
    yield Prometheus(port)
    process.kill()
    await process.wait()


async def test_prometheus_scrapes_and_answers_the_dashboard_and_promtool_finds_nothing_wrong(prometheus):
    await prometheus.until("rate(qmpalloc_guest_accesses_total[10s]) > 0")
    sizes = await prometheus.query("qmpalloc_guest_size_bytes")
    assert {each["metric"]["guest"] for each in sizes} == {"web", "db", "mail"}
    assert (await prometheus.query('up{job="qmpalloc"}'))[0]["value"][1] == "1"
    told = await prometheus.get("/api/v1/metadata")
    assert told["data"]["qmpalloc_guest_size_bytes"][0]["type"] == "gauge"
    empty = []
    for expression in EXPRESSIONS:
        asked = expression.replace("$job", "qmpalloc").replace("$guest", ".*").replace("$__rate_interval", "10s")
        if not await prometheus.query(asked):
            empty.append(asked)
    # What the made-up guests do not tell.
    assert all(re.search("host_memory|resident|stalled|oom_kills", each) for each in empty), "\n".join(empty)
    if shutil.which("promtool") is not None:
        (target,) = (await prometheus.get("/api/v1/targets"))["data"]["activeTargets"]
        text = await trio.to_thread.run_sync(fetched, target["scrapeUrl"])
        result = await trio.run_process(
            ["promtool", "check", "metrics"], stdin=text, capture_stdout=True, capture_stderr=True
        )
        assert (result.stdout, result.stderr) == (b"", b"")
