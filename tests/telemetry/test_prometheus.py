"""Metrics: what the view and a worker's port show, to whom; the alert rules in a real Prometheus."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from reliable_jobs import lifecycle
from reliable_jobs.conf import Settings, address
from reliable_jobs.health import figures
from reliable_jobs.models import Job, Process, ProcessSeen, Stat
from reliable_jobs.models.statistics import MINUTE
from reliable_jobs.status import Ending, ProcessKind
from reliable_jobs.telemetry import counters, port
from reliable_jobs.telemetry.fleet import Fleet
from reliable_jobs.testing import override_dispatch
from tests.support.fixtures import or_skip
from tests.support.harness import Stack, wait_until
from tests.support.private_servers import PrivatePrometheus, free_port
from tests.support.private_servers.server import program
from tests.testapp import tasks

MONITORING = Path(__file__).resolve().parent.parent.parent / "monitoring"
RULES = MONITORING / "reliable_jobs_alerts.yml"
TOKEN = "a-token-of-prometheus"


@pytest.fixture(autouse=True)
def _urls() -> Iterator[None]:
    with override_settings(ROOT_URLCONF="tests.health.urls", RELIABLE_JOBS={"METRICS_TOKEN": TOKEN}):
        yield


def samples(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """By name, the values by their labels' values, in the order of the labels' names."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def scraped(client: Client | None = None, **headers: str) -> Any:
    return (client or Client()).get("/jobs/metrics/", headers=headers or {"Authorization": f"Bearer {TOKEN}"})


def dashboard_queries() -> list[str]:
    panels = json.loads((MONITORING / "grafana_dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def make_late(seconds: float = 900) -> Job:
    with override_dispatch():
        job = Job.objects.get(pk=tasks.login.delay("ann", "an-argument").id)
    Job.objects.filter(pk=job.pk).update(due_at=timezone.now() - datetime.timedelta(seconds=seconds))
    return job


# --- the view ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_view_shows_queues_failures_and_processes() -> None:
    job = make_late()
    with override_dispatch():
        tasks.effect.apply_async(("later",), countdown=600)
        failed = Job.objects.get(pk=tasks.fails.delay("milk").id)
    Job.objects.filter(pk=failed.pk).update(status="failed", finished_at=timezone.now(), error_class="ValueError")
    for name, number in ((job.queue, 3), ("other", 4)):
        about = {"span": MINUTE, "at": timezone.now(), "task": tasks.effect.name, "ending": Ending.CRASHED}
        Stat.objects.create(**about, queue=name, n=number)
    worker = Process.objects.create(kind=ProcessKind.WORKER, name="w1", host="h", pid=1)
    ProcessSeen.objects.create(process=worker, seen_at=timezone.now(), queues=[job.queue], broker_ok=False)
    answer = scraped()
    assert (answer.status_code, answer.headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    found = {name.removeprefix("reliable_jobs_"): values for name, values in samples(answer.text).items()}
    queue = ("default", job.queue)
    assert [found[name][queue] for name in ("waiting", "delayed", "running", "consumers", "paused")] == [1, 1, 0, 1, 0]
    assert 890 < found["oldest_due_seconds"][queue] < 960
    assert found["failed_last_hour"] == {("default", "ValueError", tasks.fails.name): 1}
    assert found["processes"][("default", "worker")] == found["processes_without_broker"][("default", "worker")] == 1
    assert found["processes"][("default", "beat")] == 0
    assert found["breaker_open"] == {(): 0}
    assert found["ended_lately"] == {("default", "crashed", tasks.effect.name): 7}
    assert found["ended_per_second"][queue] == 0  # a run that crashed has ended no job


@pytest.mark.django_db
def test_no_argument_is_shown_and_names_are_escaped() -> None:
    job = make_late()
    Job.objects.filter(pk=job.pk).update(queue='odd"\n<script>\\')
    answer = scraped()
    assert "an-argument" not in answer.text
    assert samples(answer.text)["reliable_jobs_waiting"] == {("default", 'odd"\n<script>\\'): 1}


@pytest.mark.django_db
@pytest.mark.parametrize("given", ["", "Bearer ", "Bearer wrong", TOKEN, f"Basic {TOKEN}", "Bearer \xe9"])
def test_without_the_token_nobody_may_see_it(given: str) -> None:
    answer = scraped(Authorization=given)
    assert answer.status_code == 401
    assert "reliable_jobs_" not in answer.text
    with override_settings(RELIABLE_JOBS={}):
        assert scraped(Authorization=given).status_code == 401


@pytest.mark.django_db
def test_a_user_sees_it_who_may_view_jobs_and_no_other() -> None:
    client, user = Client(), User.objects.create_user("ann")
    client.force_login(user)
    assert scraped(client, Accept="*/*").status_code == 401
    user.user_permissions.add(Permission.objects.get(codename="view_job"))
    assert scraped(client, Accept="*/*").status_code == 200
    assert client.post("/jobs/metrics/").status_code == 405


@pytest.mark.django_db
def test_its_cost_does_not_grow_with_what_it_shows() -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            scraped()
        return len(captured)

    make_late()
    before = queries()
    for number in range(5):
        job = make_late()
        Job.objects.filter(pk=job.pk).update(queue=f"queue {number}")
        with override_dispatch():
            lifecycle.cancel([tasks.effect.delay("x").id], "default", actor="ann")
    assert queries() == before <= 8


@pytest.mark.django_db
def test_a_database_that_is_away_or_a_missing_library_is_said() -> None:
    with mock.patch.object(figures, "depths", side_effect=OperationalError("secret host name")):
        answer = scraped()
    assert (answer.status_code, "OperationalError" in answer.text, "secret" in answer.text) == (503, True, False)
    with mock.patch.dict(sys.modules, {"prometheus_client": None}):
        answer = scraped()
    assert (answer.status_code, "reliable-jobs[prometheus]" in answer.text) == (501, True)


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["metrics", "health", "health/site"])
def test_where_the_database_is_away_a_session_that_it_holds_is_no_500(name: str) -> None:
    def away(*statement: Any) -> None:
        raise OperationalError("secret host name")

    client = Client()
    client.force_login(User.objects.create_superuser("Grace"))
    with connection.execute_wrapper(away):
        answer = client.get(f"/jobs/{name}/")
    assert (answer.status_code, "secret" in answer.text) == (503, False)
    assert "OperationalError" in answer.text
    assert not answer.cookies, "nobody is logged out"


@pytest.mark.parametrize("text", ["9808", ":9808", "0.0.0.0:", "0.0.0.0:x", "0.0.0.0:0", "0.0.0.0:70000", 9808])
def test_an_address_that_is_none_is_refused(text: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="an address and a port"):
        Settings(METRICS_LISTEN=text)
    assert address("[::1]:9808") == ("::1", 9808)


# --- a worker's port --------------------------------------------------------------------------------------------------


@pytest.mark.servers
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_worker_shows_what_all_its_children_did(stack: Stack, idle_queue: str, tmp_path: Path, pool: str) -> None:
    where = f"127.0.0.1:{free_port()}"
    worker = stack.worker(pool=pool, concurrency=2, METRICS_LISTEN=where)

    def shown() -> dict[str, dict[tuple[str, ...], float]]:
        with urllib.request.urlopen(f"http://{where}/metrics", timeout=60) as answer:
            return samples(answer.read().decode())

    gates = [tmp_path / f"gate {number}" for number in range(2)]
    log = tmp_path / "log"
    held = [tasks.gated.delay("held", str(log), str(gate)) for gate in gates]
    wait_until(lambda: log.exists() and log.read_text().count("held") == 2, "both children run")  # one in each child
    for gate in gates:
        gate.touch()
    for job in held:
        stack.ends(job)
    stack.ends(tasks.fails.delay("milk"), "failed")
    queue = idle_queue

    def counted() -> bool:
        found = shown()
        settled = found.get("reliable_jobs_settled_total", {})
        return settled == {(queue, "succeeded", tasks.gated.name): 2, (queue, "failed", tasks.fails.name): 1}

    wait_until(counted, "all three are counted")
    found = shown()
    assert found["reliable_jobs_started_total"] == {(queue, tasks.gated.name): 2, (queue, tasks.fails.name): 1}
    assert found["reliable_jobs_run_seconds_count"][queue, tasks.gated.name] == 2
    assert found["reliable_jobs_wait_seconds_count"][queue, tasks.fails.name] == 1
    assert 0 < found["reliable_jobs_run_seconds_sum"][queue, tasks.gated.name] < 60
    worker.term()
    worker.wait()
    assert "Metrics for Prometheus" in worker.log


def test_a_worker_that_is_to_show_metrics_and_cannot_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with override_settings(RELIABLE_JOBS={"METRICS_LISTEN": "127.0.0.1:9808"}):
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        with pytest.raises(SystemExit, match=r"pip install 'reliable-jobs\[prometheus\]'"):
            port._count()


# --- alert rules and dashboard ----------------------------------------------------------------------------------------


def test_promtool_finds_nothing_wrong_with_the_files() -> None:
    promtool = or_skip(lambda: program("promtool"))
    for arguments in (["rules", RULES.name], ["config", "prometheus.yml"]):
        done = subprocess.run([promtool, "check", *arguments], cwd=MONITORING, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.django_db
def test_rules_and_dashboard_name_only_metrics_that_there_are() -> None:
    registry = CollectorRegistry()
    registry.register(Fleet())
    known = {metric.name for metric in registry.collect()}
    for counter in (value for value in vars(counters).values() if isinstance(value, (Counter, Histogram))):
        known |= {f"{metric.name}{end}" for metric in counter.collect() for end in ("_total", "_bucket")}
    shown = dashboard_queries()
    named = set(re.findall(r"reliable_jobs_\w+", " ".join([*re.findall("expr: (.*)", RULES.read_text()), *shown])))
    assert len(shown) > 10
    assert named - known == set()


@pytest.mark.servers  # a thread that ends takes SQLite in memory with it
def test_an_alert_fires_in_a_real_prometheus(transactional_db: None, live_server: Any) -> None:
    job = make_late()
    rules = re.sub(r"for: \w+", "for: 0s", RULES.read_text())
    host = live_server.url.removeprefix("http://")
    configuration = f"""
global: {{scrape_interval: 2s, evaluation_interval: 200ms}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: reliable_jobs
    metrics_path: /jobs/metrics/
    authorization: {{credentials: {TOKEN}}}
    static_configs: [{{targets: ["{host}"]}}]
"""
    with or_skip(lambda: PrivatePrometheus(configuration, {"rules.yml": rules})) as prometheus:
        loaded = prometheus.get("/api/v1/rules")["groups"][0]["rules"]
        assert len(loaded) == RULES.read_text().count("- alert: ")

        def firing() -> list[dict[str, Any]]:
            alerts = prometheus.get("/api/v1/alerts")["alerts"]
            late = [alert for alert in alerts if alert["labels"]["alertname"] == "ReliableJobsLate"]
            return [alert for alert in late if alert["state"] == "firing"]

        (alert,) = wait_until(firing, "the alert fires")
        assert alert["labels"]["queue"] == job.queue
        assert f"queue {job.queue} has been due for 15m" in alert["annotations"]["summary"]

        def healths() -> set[str]:
            return {rule["health"] for rule in prometheus.get("/api/v1/rules")["groups"][0]["rules"]}

        wait_until(lambda: "unknown" not in healths(), "each rule was evaluated")
        assert healths() == {"ok"}
        for query in dashboard_queries():
            prometheus.get("/api/v1/query?" + urllib.parse.urlencode({"query": query.replace("$database", ".*")}))


OWN_METRICS = """
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.multiprocess import MultiProcessCollector

plain, labelled = Counter("own_plain", ""), Counter("own_labelled", "", ["kind"])  # as a module of tasks does
import django
from django.conf import settings

settings.configure(
    RELIABLE_JOBS={"METRICS_LISTEN": "127.0.0.1:9808"}, INSTALLED_APPS=["django.contrib.contenttypes", "reliable_jobs"]
)
django.setup()
from reliable_jobs.telemetry import port

port._count()
plain.inc(), labelled.labels("a").inc()
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(*sorted(metric.name for metric in registry.collect()))
port._close()
"""


@pytest.mark.parametrize("named", [False, True])
def test_own_metrics_without_labels_want_the_directory_from_the_start(tmp_path: Path, named: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != port.DIRECTORY}
    if named:
        environment[port.DIRECTORY] = str(tmp_path)
    said = subprocess.run(
        [sys.executable, "-c", OWN_METRICS], env=environment, capture_output=True, text=True, check=True, timeout=180
    )
    assert [name for name in said.stdout.split() if name.startswith("own_")] == ["own_labelled"] + ["own_plain"] * named


@pytest.mark.parametrize("named", [False, True])
def test_a_worker_that_starts_anew_in_its_process_counts_again(tmp_path: Path, named: bool) -> None:
    """SIGHUP has Celery's worker end, and its process run the command line once more, with the same environment."""
    environment = {name: value for name, value in os.environ.items() if name != port.DIRECTORY}
    if named:
        environment[port.DIRECTORY] = str(tmp_path)
    again = f"{OWN_METRICS}\nimport os, sys\nif len(sys.argv) < 2: os.execv(sys.executable, [*sys.orig_argv, 'again'])"
    said = subprocess.run([sys.executable, "-c", again], env=environment, capture_output=True, text=True, timeout=180)
    assert said.stdout.splitlines() == ["own_labelled" + " own_plain" * named] * 2, said.stderr
