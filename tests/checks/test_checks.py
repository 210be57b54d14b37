"""Each check speaks up on the configuration that it names, and keeps quiet on the one that its hint asks for."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, _state
from celery.bin.celery import celery as celery_command
from django.apps import apps
from django.core import checks
from django.core.checks import CheckMessage, Tags
from django.db import connection, connections
from kombu import Queue

from reliable_jobs import ReliableTask, RetriedTask, TenHourTask
from reliable_jobs.checks import databases, environment
from reliable_jobs.checks import tasks as task_checks
from reliable_jobs.compat.celery import configured_app
from reliable_jobs.idempotency import GetOrCreateTask, IdempotentTask
from reliable_jobs.schedule import SWEEP_TASK, create_periodic_tasks
from tests.support import checking
from tests.support.checking import Configure, about, add, found
from tests.support.inprocess import extra_database

project = checking.project


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_suites_own_settings_have_no_errors(project: Configure) -> None:
    project(task_time_limit=60, broker="amqp://localhost")
    beat_is_there = apps.is_installed("django_celery_beat")
    named = [identifier for identifier in found() if identifier.startswith(("E", "W00", "W01", "W02"))]
    assert named == [] if beat_is_there else named == ["W012"]


def test_manage_check_finds_no_error() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "django", "check", "--fail-level", "ERROR"],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 0, run.stderr
    # Nothing there imports the Celery app, and that is said.
    assert "reliable_jobs.W001" in run.stderr


def test_an_invalid_settings_dict_is_an_error_and_stops_no_other_check(project: Configure, settings: Any) -> None:
    project(worker_prefetch_multiplier=0, broker="amqp://localhost")
    settings.RELIABLE_JOBS = {"GRACEE": 3}
    messages = found()
    assert "Did you mean 'GRACE'?" in messages["E001"].msg
    assert messages["E001"].level == checks.ERROR
    assert "W008" in messages


def test_without_a_celery_app_only_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_state._tls, "current_app", None)
    monkeypatch.setattr(_state, "default_app", None)
    assert "W001" in found()
    # Somebody has touched current_app, and Celery has made its fallback.
    assert _state._get_current_app().main == "default"
    assert configured_app() is None
    assert "celery_app" in found()["W001"].hint


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("accept_content", ["json", "pickle"], ["json"]),
        ("accept_content", ["application/x-python-serialize"], ["json", "msgpack"]),
        ("result_accept_content", ["pickle"], None),
        ("result_serializer", "pickle", "json"),
    ],
)
def test_pickle_is_named(project: Configure, name: str, bad: Any, good: Any) -> None:
    project(**{name: bad})
    assert name in found()["W002"].msg
    project(**{name: good})
    assert "W002" not in found()


def test_a_pickle_serializer_is_an_error(project: Configure) -> None:
    project(task_serializer="pickle")
    assert found()["E002"].level == checks.ERROR
    app = project()
    add(app, "checked.pickled", serializer="pickle")
    assert "checked.pickled" in found()["E002"].msg


def test_a_check_binds_reliable_task_to_no_app(project: Configure) -> None:
    """Bound itself, it would hand one app's settings down to the tasks of every app."""
    app = project(task_serializer="pickle")
    add(app, "checked.odd", spelt="so")
    found()
    later = project()
    add(later, "checked.later")
    assert later.tasks["checked.later"].serializer == "json"
    assert not vars(ReliableTask).get("__bound__", False)


def test_eager_mode_is_named_before_a_deploy_only(project: Configure, settings: Any) -> None:
    project(task_always_eager=True)
    assert "W003" not in found()
    assert "W003" in found(deploy=True)
    settings.DEBUG = True
    assert "W003" not in found(deploy=True)


def test_a16_limits_that_the_configured_pool_does_not_enforce_are_named(project: Configure) -> None:
    app = project(worker_pool="threads")
    add(app, "limited", time_limit=5, soft_time_limit=4)
    assert "limited" in found()["W014"].msg
    app.conf.worker_pool = "prefork"
    assert "W014" not in found()
    app.conf.worker_pool = "gevent"
    assert "soft_time_limit" in found()["W014"].msg


def test_quorum_queues_want_to_be_detected(project: Configure) -> None:
    app = project(broker="amqp://localhost", task_default_queue_type="quorum")
    assert "W016" not in found()
    app.conf.worker_detect_quorum_queues = False
    assert "W016" in found()
    app.conf.task_default_queue_type = "classic"
    assert "W016" not in found()
    app.conf.task_queues = [Queue("jobs", queue_arguments={"x-queue-type": "quorum"})]
    assert "jobs" in found()["W016"].msg


@pytest.mark.parametrize("broker", ["redis://localhost", "sentinel://localhost"])
def test_a_visibility_timeout_shorter_than_a_time_limit_is_named(project: Configure, broker: str) -> None:
    app = project(broker=broker)
    assert "W004" not in found()
    add(app, "checked.long", time_limit=7200)
    message = found()["W004"]
    assert "checked.long is 7200 s" in message.msg
    app.conf.broker_transport_options = {"visibility_timeout": 7800}
    assert "'visibility_timeout': 7800" in str(message.hint)
    assert "W004" not in found()
    app.conf.broker_transport_options = {"visibility_timeout": 600}
    app.tasks.unregister("checked.long")
    assert "RELIABLE_JOBS['HOLD']" in found()["W004"].msg


def test_redis_is_named_before_a_deploy_only(project: Configure) -> None:
    project(broker="redis://localhost")
    assert "W005" not in found()
    assert "W005" in found(deploy=True)
    project(broker="amqp://localhost")
    assert "W005" not in found(deploy=True)


def test_channel_errors_that_end_the_worker_are_named_for_rabbitmq(project: Configure) -> None:
    project(broker="amqp://localhost", broker_channel_error_retry=False)
    assert "W006" in found(deploy=True)
    project(broker="amqp://localhost", broker_channel_error_retry=True)
    assert "W006" not in found(deploy=True)
    project(broker="redis://localhost", broker_channel_error_retry=False)
    assert "W006" not in found(deploy=True)


@pytest.mark.parametrize(
    ("conf", "named"),
    [
        ({}, False),
        ({"broker_connection_retry_on_startup": False}, True),
        ({"broker_connection_retry": False}, True),
        ({"broker_connection_retry": False, "broker_connection_retry_on_startup": True}, False),
    ],
)
def test_workers_that_give_up_at_their_start_are_named(project: Configure, conf: dict[str, Any], named: bool) -> None:
    project(**conf)
    assert ("W007" in found()) is named


@pytest.mark.parametrize(("multiplier", "named"), [(0, True), (1, False), (100, False), (500, True)])
def test_huge_prefetch_is_named(project: Configure, multiplier: int, named: bool) -> None:
    project(worker_prefetch_multiplier=multiplier)
    assert ("W008" in found()) is named


def test_deduplication_by_the_result_backend_is_named(project: Configure) -> None:
    project(worker_deduplicate_successful_tasks=True)
    assert "W009" in found()


def test_holding_longer_than_rabbitmq_allows_is_named(project: Configure, settings: Any) -> None:
    settings.RELIABLE_JOBS = {"HOLD": 1800.0}
    project(broker="amqp://localhost")
    assert "W010" in found()
    project(broker="memory://")
    assert "W010" not in found()


def test_a_broker_that_other_processes_do_not_see_is_named(project: Configure) -> None:
    """Site "memory": beat published into its own memory, and 199 effects of 100 orders were missing."""
    project(broker="memory://")
    assert "W015" in found()
    project(broker="memory://", task_always_eager=True)
    assert "W015" not in found()
    project(broker="amqp://localhost")
    assert "W015" not in found()


@pytest.mark.parametrize(
    ("broker", "variable", "named"),
    [
        ("amqp://one", "amqp://other", True),
        ("amqp://one", "amqp://one//", False),
        ("amqp://one/a", "amqp://one/b", True),
        (None, "amqp://other", True),
        (["amqp://one", "amqp://two"], "amqp://one;amqp://two", False),
        ("amqp://one", "", False),
        ("amqp://one", "amqp://h:no-port/", False),
        ("amqp://one", "rediss://h?ssl_cert_reqs=bogus", False),
        ("amqp://one", "amqp://a//;amqp://b:no-port/", False),
    ],
)
def test_a_broker_that_only_the_celery_command_would_take_is_named(
    project: Configure, monkeypatch: pytest.MonkeyPatch, broker: Any, variable: str, named: bool
) -> None:
    project(broker=broker)
    monkeypatch.setenv(environment.COMMAND_LINE, variable)
    assert ("W018" in found()) is named
    project(broker=broker, broker_read_url="amqp://r", broker_write_url="amqp://w")
    assert "W018" not in found()


def test_the_celery_command_takes_its_broker_from_that_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """And hands it to the configuration, above the settings."""
    monkeypatch.setenv("CELERY_BROKER_URL", "")  # put back at the end, whatever the command sets
    monkeypatch.setenv(environment.COMMAND_LINE, "amqp://other")
    app = Celery("commanded", broker="amqp://one", set_as_current=False)
    celery_command.main(["report"], obj=None, standalone_mode=False, default_map={"app": app})
    assert app.conf.broker_url == "amqp://other"


def test_a_password_of_a_broker_is_not_told(project: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    project(broker="amqp://user:secret1@one")
    monkeypatch.setenv(environment.COMMAND_LINE, "amqp://user:secret2@one")
    assert "secret" not in str(found()["W018"])
    monkeypatch.setenv(environment.COMMAND_LINE, "amqp://user:secret2@one//;amqp://user:secret3@two//")
    assert "secret" not in str(found()["W018"])


def test_workers_forced_to_root_are_named(project: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    project()
    monkeypatch.delenv("C_FORCE_ROOT", raising=False)
    assert "W011" not in found(deploy=True)
    monkeypatch.setenv("C_FORCE_ROOT", "1")
    assert "W011" in found(deploy=True)


def test_a_missing_beat_is_named_with_what_is_left(project: Configure, settings: Any) -> None:
    project()
    settings.INSTALLED_APPS = [name for name in settings.INSTALLED_APPS if name != "django_celery_beat"]
    assert "every 10 s" in found()["W012"].msg
    settings.RELIABLE_JOBS = {"WORKER_SWEEP_INTERVAL": 0}
    assert "nobody sweeps" in found()["W012"].msg


@pytest.mark.django_db
def test_a_disabled_or_missing_sweeper_row_is_named(project: Configure) -> None:
    PeriodicTask = pytest.importorskip("django_celery_beat.models", reason="needs django-celery-beat").PeriodicTask
    project()
    create_periodic_tasks()
    ask = {"tags": [Tags.database], "databases": ["default"]}
    assert "W013" not in found(**ask)
    PeriodicTask.objects.filter(task=SWEEP_TASK).update(enabled=False)
    assert "disabled" in found(**ask)["W013"].msg
    assert "W013" not in found()
    PeriodicTask.objects.filter(task=SWEEP_TASK).delete()
    assert "missing" in found(**ask)["W013"].msg
    assert "W013" not in found(tags=[Tags.database], databases=[])


# --- databases --------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Describe the default database as of another kind; no check but the tagged ones may connect to it."""

    def describe(vendor: str, **changes: Any) -> None:
        described = copy.deepcopy(connection.settings_dict)
        described["OPTIONS"] = {}
        described.update(changes)
        monkeypatch.setattr(connections["default"], "vendor", vendor, raising=False)
        monkeypatch.setattr(connections["default"], "settings_dict", described)

    return describe


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, False),
        ({"isolation_level": "READ COMMITTED"}, False),
        ({"isolation_level": "repeatable read"}, True),
        ({"isolation_level": None}, True),
    ],
)
def test_mysql_isolation_is_named(database: Any, options: dict[str, Any], named: bool) -> None:
    database("mysql", OPTIONS=options)
    assert bool(databases.check_isolation()) is named
    database("postgresql", OPTIONS=options)
    assert not databases.check_isolation()


def test_deferred_sqlite_is_named(database: Any) -> None:
    database("sqlite")
    assert [message.id for message in databases.check_sqlite_mode()] == ["reliable_jobs.W021"]
    database("sqlite", OPTIONS={"transaction_mode": "IMMEDIATE"})
    assert not databases.check_sqlite_mode()


@pytest.mark.django_db
def test_the_journal_of_sqlite_is_asked_for(tmp_path: Path) -> None:
    with extra_database("journal", tmp_path / "db.sqlite3") as alias:
        assert [message.id for message in databases.check_sqlite_journal(databases=[alias])] == ["reliable_jobs.W022"]
        assert not databases.check_sqlite_journal(databases=[])
        with connections[alias].cursor() as cursor:
            cursor.execute("PRAGMA journal_mode=WAL")
        assert not databases.check_sqlite_journal(databases=[alias])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"CONN_MAX_AGE": 0}, False),
        ({"CONN_MAX_AGE": 60}, True),
        ({"CONN_MAX_AGE": None}, True),
        ({"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}, False),
    ],
)
def test_kept_connections_without_a_health_check_are_named(database: Any, changes: Any, named: bool) -> None:
    database("postgresql", **changes)
    assert bool(databases.check_persistent_connections()) is named


def test_a11_a_database_that_commits_nothing_by_itself_is_an_error(database: Any) -> None:
    database("postgresql")
    assert databases.check_autocommit() == []
    database("postgresql", AUTOCOMMIT=False)
    assert [message.id for message in databases.check_autocommit()] == ["reliable_jobs.E020"]


def test_a_database_of_a_vendor_whose_sql_we_do_not_speak_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert databases.check_vendor() == []
    monkeypatch.setattr(connection, "vendor", "oracle", raising=False)
    (message,) = databases.check_vendor()
    assert message.id == "reliable_jobs.E021"
    assert "'default', which is oracle" in message.msg


@pytest.mark.parametrize(
    ("pool", "named"), [(None, False), (True, False), ({}, False), ({"max_size": 2}, True), ({"min_size": 1}, True)]
)
def test_a_pool_too_small_for_a_lease_is_named(database: Any, pool: Any, named: bool) -> None:
    database("postgresql", OPTIONS={} if pool is None else {"pool": pool})
    assert bool(databases.check_pool()) is named


# --- tasks ------------------------------------------------------------------------------------------------------------


class Silent(ReliableTask):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class Polite(ReliableTask):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class Deeper(Polite):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def inner() -> Any:
            return ReliableTask.__call__(self, *args, **kwargs)

        return inner()


class MixedIn:
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return "never"


class Mixed(MixedIn, ReliableTask):
    pass


def test_a_call_that_does_not_reach_ours_is_named(project: Configure) -> None:
    app = project()
    for base in (ReliableTask, RetriedTask, TenHourTask, Polite, Deeper, IdempotentTask, GetOrCreateTask):
        add(app, f"checked.{base.__name__}", base)
    assert "W030" not in found()
    for base in (Silent, Mixed):
        add(app, f"checked.{base.__name__}", base)
    messages = [message.msg for message in task_checks.check_tasks() if message.id == "reliable_jobs.W030"]
    assert len(messages) == 2
    assert any("Silent overrides __call__" in message and "checked.Silent" in message for message in messages)
    assert any("MixedIn overrides __call__" in message and "checked.Mixed" in message for message in messages)


@pytest.mark.parametrize(
    ("identifier", "options"),
    [
        ("W031", {"acks_late": False}),
        ("W033", {"acks_on_failure_or_timeout": False, "acks_on_failure": None}),
        ("W033", {"acks_on_failure": False}),  # Celery 5.7 (A5)
        # Said by name: a base class that another test has bound to its app keeps that app's limit.
        ("W034", {"atomic": False, "time_limit": None}),
    ],
)
def test_attributes_that_weaken_a_task_are_named(project: Configure, identifier: str, options: Any) -> None:
    app = project(task_acks_on_failure_or_timeout=True)
    # The message of a run that passed its hard time limit goes back to the broker whatever acks_on_timeout says.
    add(app, "0.sound", time_limit=60, acks_on_timeout=False)
    add(app, "0.weak_one", **options)  # first by name: the message shows five, and other tests have shared tasks
    named = about(app, identifier)
    assert "0.weak_one" in named
    assert "0.sound" not in named


def test_a5_a_setting_for_lost_workers_that_does_not_reach_ours_is_named(project: Configure) -> None:
    app = project()
    add(app, "checked.sound", time_limit=60)
    assert "W039" not in found()
    app.conf["task_retry_on_worker_lost"] = True  # unknown before Celery 5.7, and harmless there
    assert "W039" in found()


def test_a_time_limit_on_the_task_or_for_all_is_enough(project: Configure) -> None:
    app = project()
    add(app, "checked.limited", atomic=False, time_limit=60)
    assert "checked.limited" not in about(app, "W034")
    project(task_time_limit=60)
    assert "W034" not in found()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("max_retry", "max_retries"),
        ("retry_backof", "retry_backoff"),
        ("autoretry", "autoretry_for"),
        ("retry_windows", "retry_window"),
        ("sensitve", "sensitive"),
        ("time_limits", "time_limit"),
    ],
)
def test_misspelt_attributes_are_named_with_the_right_one(project: Configure, wrong: str, right: str) -> None:
    app = project()
    add(app, "checked.misspelt", **{wrong: 3})
    assert about(app, "W035") == f"{wrong} is no attribute that a task knows; {right} is: checked.misspelt."


def test_attributes_of_ones_own_and_all_right_ones_are_left_alone(project: Configure) -> None:
    app = project()
    own = {
        "model": 1,
        "queues": ["a"],
        "requests": 1,
        "backends": (),
        "names": [],
        "lookup": 1,
        "retries": 1,
        "retry_delay": 5,
    }
    right = dict.fromkeys(task_checks.ATTRIBUTES)
    right.update(
        autoretry_for=(OSError,), dont_autoretry_for=(), retry_kwargs={}, retry_backoff=True, retry_backoff_max=5
    )
    add(app, "checked.own", **own, **right)
    assert "W035" not in found()


def test_a_retry_window_that_nothing_uses_is_named(project: Configure) -> None:
    app = project()

    def by_hand(self: Any) -> None:
        try:
            raise OSError
        except OSError as error:
            raise self.retry(exc=error) from error

    app.task(base=ReliableTask, name="checked.by_hand", retry_window=60, bind=True, shared=False)(by_hand)
    add(app, "checked.auto", retry_window=60, autoretry_for=(OSError,))
    add(app, "checked.ten_hours", TenHourTask)
    assert "W036" not in found()
    add(app, "checked.useless", retry_window=60)
    assert about(app, "W036").endswith("retry(): checked.useless.")


def test_a_bundle_that_is_no_size_or_has_no_effect_is_named(project: Configure) -> None:
    app = project()
    add(app, "checked.small", bundle=100)
    assert not {"E004", "W037"} & set(found())
    add(app, "checked.huge", bundle=101)
    add(app, "checked.none", bundle=0)
    add(app, "checked.outside", bundle=10, atomic=False, time_limit=5)
    add(app, "checked.limited", bundle=10, rate_limit="1/s")
    assert about(app, "E004").endswith("from 1 to 100: checked.huge, checked.none.")
    assert about(app, "W037").endswith("counts messages: checked.limited, checked.outside.")
    assert "W038" not in found()


def test_bundles_that_no_revocation_reaches_are_named(project: Configure, settings: Any) -> None:
    app = project()
    add(app, "checked.small", bundle=100)
    settings.RELIABLE_JOBS = {"WORKER_SWEEP_INTERVAL": 0}
    assert "is off: checked.small" in about(app, "W038")
    settings.RELIABLE_JOBS = {"WORKER_CONN_MAX_AGE": 0, "WORKER_SWEEP_INTERVAL": 0}
    assert "W038" not in found()
    assert "counts messages: checked.small" in about(app, "W037")


def test_a_task_module_that_can_not_be_imported_is_an_error(project: Configure) -> None:
    project(imports=["tests.no_such_module"])
    assert "tests.no_such_module" in found()["E003"].msg


def test_the_check_imports_task_modules_without_running_in_a_circle(project: Configure) -> None:
    runs: list[int] = []

    def counted(**kwargs: Any) -> list[CheckMessage]:
        runs.append(1)
        return []

    app = project(imports=["tests.testapp.tasks"])
    checks.register(counted, "counted")
    try:
        found()
    finally:
        checks.registry.registry.registered_checks.discard(counted)
    assert len(runs) == 1
    assert "tests.testapp.tasks.effect" in app.tasks
    assert "CELERY_SKIP_CHECKS" not in os.environ


def test_b5_a_generator_function_is_an_error(project: Configure) -> None:
    def generates() -> Iterator[int]:
        yield 1

    app = project()
    add(app, "fine")
    assert "E060" not in found()
    app.task(base=ReliableTask, name="shop.generates", shared=False)(generates)
    assert "shop.generates" in found()["E060"].msg


@pytest.mark.parametrize(("options", "limit", "named"), [({}, None, True), ({"timeout": 20}, 25, True), ({}, 3, False)])
def test_e9_long_atomic_functions_on_sqlite_are_named(
    project: Configure, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], limit: int | None, named: bool
) -> None:
    app = project()
    add(app, "checked.a_long_one", time_limit=limit)
    monkeypatch.setattr(databases, "reliable_tasks", lambda app: [app.tasks["checked.a_long_one"]])
    monkeypatch.setattr(databases, "_of", lambda vendor: iter([("default", {}, options)] if vendor == "sqlite" else []))
    assert ("I028" in found()) is named


@pytest.mark.parametrize(
    ("zone", "timezone", "named"),
    [("Asia/Tokyo", None, True), ("UTC", None, False), ("Asia/Tokyo", "Asia/Tokyo", True)],
)
def test_a8_naive_times_that_celery_reads_in_another_zone_are_named(
    project: Configure, settings: Any, zone: str, timezone: str | None, named: bool
) -> None:
    settings.USE_TZ, settings.TIME_ZONE = False, zone
    project(timezone=timezone)
    assert ("W017" in found()) is named
