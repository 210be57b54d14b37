"""The package without django-celery-beat and django-celery-results: a fresh environment, a real worker and beat."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.adopt.test_adoption import MODELS
from tests.sites import environments
from tests.sites import site as sites
from tests.support.adopted_site import Site, site_in
from tests.support.harness import server_urls, wait_until

TASKS = """
    from celery import shared_task

    from archive.models import Document
    from reliable_jobs import ReliableTask

    @shared_task(base=ReliableTask, bind=True, max_retries=2)
    def store(self, title, fail=0):
        Document.objects.create(title=title)
        if self.request.retries < fail:
            raise self.retry(countdown=0.2)
        return len(title)

    @shared_task(base=ReliableTask)
    def breaks():
        raise KeyError("no such thing")
"""
BEAT = """
CELERY_BEAT_SCHEDULE = {
    "sweep": {"task": "reliable_jobs.sweep", "schedule": 1.0},
    "prune": {"task": "reliable_jobs.prune", "schedule": 600.0},
}
"""


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    """An interpreter with the built wheel, Django and Celery, and nothing else that the package could use."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        with environments.environment(
            sites.Site("without", "extras", python=version, requirements=("psycopg[binary]>=3.2",), extras=())
        ) as binaries:
            yield str(binaries / "python")
    except environments.NoEnvironment as why:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(why)[:300])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, python: str) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("bare"), *server_urls(), python) as made:
        files = {"archive/models.py": MODELS, "archive/tasks.py": TASKS}
        # What is delayed is swept by Celery's own beat: the worker sweeps too late for this test.
        made.make(files, celery="", apps=(), more=BEAT, WORKER_SWEEP_INTERVAL=600)
        made.start("worker", "-c", "1", "-l", "INFO", "--without-gossip", "--without-mingle")
        made.start("beat", "-l", "INFO", "-s", str(made.directory / "schedule"))
        yield made


@pytest.mark.servers
@pytest.mark.slow
def test_e11_jobs_retries_delays_and_results_need_neither_package(site: Site) -> None:
    absent = site.python_code(
        "import importlib.util as u; print([u.find_spec(f'django_celery_{n}') for n in ('beat', 'results')])"
    )
    assert absent == "[None, None]"
    tables = {name for (name,) in site.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert "reliable_jobs_job" in tables
    assert not any(name.startswith("django_celery_") for name in tables)

    now = site.delay("store", "now")
    retried = site.delay("store", "retried", 1)
    later = site.python_code("print(tasks.store.apply_async(('later',), countdown=1).id)")
    broken = site.delay("breaks")
    for job_id in (now, retried, later, broken):
        wait_until(lambda job_id=job_id: site.ended(job_id), f"job {job_id} has ended")
    answers = site.python_code(f"""
        for job_id in {[now, retried, later]!r}:
            result = tasks.store.AsyncResult(job_id)
            print(result.state, result.get(timeout=5))
        result = tasks.breaks.AsyncResult({broken!r})
        print(result.state, result.failed())
    """)
    assert answers.splitlines() == ["SUCCESS 3", "SUCCESS 7", "SUCCESS 5", "FAILURE True"]
    assert sorted(site.rows("SELECT title, count(*) FROM archive_document GROUP BY 1")) == [
        ("later", 1),
        ("now", 1),
        ("retried", 1),
    ]


@pytest.mark.servers
@pytest.mark.slow
def test_e11_checks_admin_and_commands_need_neither_package(site: Site) -> None:
    assert "reliable_jobs." not in site.manage("check", "--tag", "reliable_jobs").stderr
    assert site.manage("reliable_jobs_status").returncode == 0
    assert site.manage("reliable_jobs_check").returncode == 0
    site.manage("reliable_jobs_prune")
    site.python_code(
        "import reliable_jobs.testing, reliable_jobs.idempotency, reliable_jobs.results, reliable_jobs.sweep.relay"
    )
    settings = site.directory / "proj/settings.py"
    kept = settings.read_text()
    try:
        settings.write_text(kept + "CELERY_BEAT_SCHEDULE = {}\n")
        assert "reliable_jobs.W012" in site.manage("check", "--tag", "reliable_jobs").stderr
    finally:
        settings.write_text(kept)
