"""The servers' fixtures. Nothing here is started unless a test asks for it."""

from __future__ import annotations

import datetime
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.harness import Stack, Worker

#: Sessions that a test run has left in its database, with what each said last.
LEFTOVERS = Path(__file__).resolve().parent.parent.parent / "var" / "leftover-sessions.log"


def pytest_collection_finish() -> None:
    """Thousands of tests and their modules stay until the end. Looking through them for garbage again and again took a
    fifth of the time of the suite on SQLite."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """What a worker within the test writes in a thread of its own belongs to the test, not to the next one. On a slow
    machine such a thread outlives the patience with it (`reliable_jobs.worker.parking`)."""
    for thread in threading.enumerate():
        if thread.name == "reliable_jobs-aside":
            thread.join(10)


@pytest.fixture(scope="session", autouse=True)
def _threads_close_their_connections() -> Iterator[None]:
    """Django never closes a connection to SQLite in memory, as the database would be gone with it. A thread's own one
    can go, and Python 3.13 warns where it is not closed."""
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.sqlite3.base import DatabaseWrapper

    djangos = DatabaseWrapper.close

    def close(self: Any) -> None:
        its_own = threading.current_thread() is not threading.main_thread() and not self.allow_thread_sharing
        (BaseDatabaseWrapper.close if its_own else djangos)(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseWrapper, "close", close)
        yield


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Names the sessions that tests have left in the test database, and ends them. The DROP DATABASE that fails for
    one of them comes after all tests have passed, and tells nothing of whose it is."""
    from django.db import connection, connections

    from tests.support import emptying

    made = connections["default"]
    emptying.install()
    with django_db_blocker.unblock():
        for one in connections.all():
            emptying.keep(one)
    yield
    if connection.vendor != "postgresql":
        return
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid, state, state_change, query, pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        left = cursor.fetchall()
        if connection.connection is not None and connections["default"] is not made:
            left.append(("the wrapper of 'default' was exchanged, and its own session left",))
    connections.close_all()
    if left:
        LEFTOVERS.parent.mkdir(exist_ok=True)
        with LEFTOVERS.open("a") as file:
            file.writelines(f"{datetime.datetime.now():%F %T} pid {os.getpid()}: {session}\n" for session in left)


@pytest.fixture(scope="session")
def _stack_of_session(django_db_blocker: Any) -> Iterator[Stack]:
    """The database of all tests that need servers, made and migrated once."""
    from tests.support.harness import Stack, server_urls

    with Stack(*server_urls()).migrated(django_db_blocker) as stack:
        yield stack


@pytest.fixture(scope="module")
def _queue_of_module(_stack_of_session: Stack) -> Iterator[Stack]:
    import uuid

    _stack_of_session.queue = f"rj_{os.getpid()}_{uuid.uuid4().hex[:6]}"
    yield _stack_of_session
    _stack_of_session.end_processes(_stack_of_session.processes)


@pytest.fixture
def stack(_queue_of_module: Stack, django_db_blocker: Any) -> Iterator[Stack]:
    """An empty database, the module's queue, and a place to start processes from. What a test starts ends with it."""
    stack = _queue_of_module
    with django_db_blocker.unblock(), stack.active():
        before = list(stack.processes)
        stack.declare()
        stack.purge()
        stack.clean()
        yield stack
        stack.end_processes(process for process in list(stack.processes) if process not in before)


@pytest.fixture(scope="module")
def _worker_of_module(_queue_of_module: Stack, django_db_blocker: Any) -> Worker:
    with django_db_blocker.unblock(), _queue_of_module.active():
        _queue_of_module.declare()
        return _queue_of_module.worker(concurrency=2)


@pytest.fixture
def worker(_worker_of_module: Worker, stack: Stack) -> Worker:
    """A worker with two prefork children, shared by the module's tests. Do not kill it; start your own for that."""
    return _worker_of_module


@pytest.fixture
def idle_queue(stack: Stack) -> Iterator[str]:
    """A queue that nobody consumes until the test starts a worker, and in which nothing has settled yet."""
    with stack.own_queue() as queue:
        yield queue


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file for which bodies wait; it exists after the test in any case, so that nothing hangs on."""
    path = tmp_path / "gate"
    yield path
    path.touch()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file to which bodies append: effects that no rollback undoes."""
    return tmp_path / "outside"


def or_skip(start: Callable[[], Any]) -> Any:
    from tests.support.private_servers import ServerMissing

    try:
        return start()
    except ServerMissing as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))


@pytest.fixture
def broker_proxy(stack: Stack) -> Iterator[Any]:
    """The broker behind a proxy that can be cut; ``proxy.url(stack.broker_url)`` leads through it. A commit waits as on
    a site.
    """
    from urllib.parse import urlsplit

    from django.test import override_settings

    from reliable_jobs.conf import Settings
    from tests.support.private_servers import CuttableProxy

    as_on_a_site = override_settings(RELIABLE_JOBS={**stack.settings, "PUBLISH_TIMEOUT": Settings.PUBLISH_TIMEOUT})
    with as_on_a_site, CuttableProxy(urlsplit(stack.broker_url).port or 5672) as proxy:
        yield proxy


@pytest.fixture
def database_proxy(stack: Stack) -> Iterator[Any]:
    from urllib.parse import urlsplit

    from tests.support.private_servers import CuttableProxy

    with CuttableProxy(urlsplit(stack.database_url).port or 5432) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def private_rabbitmq() -> Iterator[Any]:
    """A broker that a test may stop, wipe and raise alarms in."""
    from tests.support.private_servers import PrivateRabbitMQ

    with or_skip(PrivateRabbitMQ) as server:
        yield server


@pytest.fixture(scope="session")
def private_redis() -> Iterator[Any]:
    """A Redis of the tests' own."""
    from tests.support.private_servers import PrivateRedis

    with or_skip(PrivateRedis) as server:
        yield server


@pytest.fixture(scope="session")
def private_postgres() -> Iterator[Any]:
    """A database server that a test may stop and restart."""
    from tests.support.private_servers import PrivatePostgres

    with or_skip(PrivatePostgres) as server:
        yield server


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show what the workers and producers said when a test fails, which jobs are unfinished, and who holds what."""
    outcome: Any = yield
    report = outcome.get_result()
    stack = getattr(item, "funcargs", {}).get("stack")
    if report.when == "call" and report.failed and stack is not None:
        report.sections.append(("the database", stack.state()))
        for process in stack.processes:
            report.sections.append((f"{process.name}, its last words", process.log[-6000:]))
