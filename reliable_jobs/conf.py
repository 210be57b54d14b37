"""The one settings dict, ``RELIABLE_JOBS``: validated as a whole, read lazily, follows ``override_settings``."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from reliable_jobs.status import FINAL

#: Longest name of a release, in characters; Sentry's limit.
RELEASE_LENGTH = 200
#: Where a release is looked for that RELEASE does not name, in this order: where Sentry's SDK looks, too.
RELEASE_VARIABLES = (
    "SENTRY_RELEASE",
    "HEROKU_BUILD_COMMIT",
    "HEROKU_SLUG_COMMIT",
    "SOURCE_VERSION",
    "CODEBUILD_RESOLVED_SOURCE_VERSION",
    "CIRCLE_SHA1",
    "GAE_DEPLOYMENT_ID",
    "K_REVISION",
)


def _default_release() -> str:
    found = (os.environ.get(name, "").strip() for name in RELEASE_VARIABLES)
    return next((release for release in found if release), "")[:RELEASE_LENGTH]


def _default_retention() -> Mapping[str, float | None]:
    return {"succeeded": 7, "failed": 90, "cancelled": 30, "expired": 30}


_MAY_BE_ZERO = ("WORKER_SWEEP_INTERVAL", "STALL_TIMEOUT", "WORKER_CONN_MAX_AGE", "PRESENCE_INTERVAL")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Values of ``RELIABLE_JOBS``. Times are in seconds unless the comment says otherwise.

    Raises:
        django.core.exceptions.ImproperlyConfigured: an unknown key, a wrong type or a value out of range.

    Example::

        RELIABLE_JOBS = {"GRACE": 30, "RETENTION": {"succeeded": 2, "failed": None}}
    """

    #: "on_commit": the committing process publishes. "relay": it writes rows only; a sweeper publishes them when due.
    DISPATCH: str = "on_commit"
    #: All that one request may spend on the broker, connecting included. A publish that fails with nothing confirmed
    #: opens the breaker.
    PUBLISH_TIMEOUT: float = 0.8
    #: Rows that a sweep publishes under one wait for confirms.
    PUBLISH_WINDOW: int = 500
    #: Jobs of one task that one message carries at most, each with a transaction of its own, from 1 (off) to 100.
    DELIVERY_BATCH: int = 100
    #: How long after its send a row is first looked at; each further send doubles it.
    GRACE: float = 15.0
    #: Longest time between two looks at a sent row.
    MAX_GRACE: float = 3600.0
    #: Largest payload (serialised arguments, callbacks) of a call, in bytes.
    MAX_PAYLOAD_BYTES: int = 64 * 1024
    #: Largest result of a job that is stored or handed to what follows it, serialised, in bytes.
    MAX_RESULT_BYTES: int = 1024 * 1024
    #: How long a committed claim stays valid without a sign of life.
    LEASE: float = 10.0
    #: Committed claims that never reported, after which a job is failed instead of run again. An atomic job's first run
    #: has none: it may die once more.
    MAX_CRASHES: int = 3
    #: Database failures during the function after which a job is failed instead of run again.
    MAX_INTERRUPTIONS: int = 10
    #: Conflicts with other transactions (deadlock, serialisation failure) within an hour; further ones count as
    #: interruptions.
    MAX_CONFLICTS: int = 100
    #: How long a worker that lacks a task's code (or its new signature) hands the job back before parking it.
    DEPLOY_GRACE: float = 600.0
    #: Absolute limit of one non-atomic run whose task has no ``time_limit``; its lease is not extended past it.
    RUN_DEADLINE: float = 6 * 3600.0
    #: How long a worker holds a delivery while the database is away. Below RabbitMQ's consumer_timeout (30 min).
    HOLD: float = 1200.0
    #: First interval of the beat sweeper; afterwards its django-celery-beat row rules.
    SWEEP_INTERVAL: int = 1
    #: Interval of the fallback sweeper beside each worker; 0 switches it off.
    WORKER_SWEEP_INTERVAL: float = 10.0
    #: A worker that has room and receives nothing for so long, while jobs wait in its queues and the broker answers
    #: others, reconnects, and at last ends with status 75. 0 switches the watchdog off.
    STALL_TIMEOUT: float = 15.0
    #: How long a worker keeps a database connection between reliable tasks where CONN_MAX_AGE is 0; 0 closes it around
    #: every task, as Celery does.
    WORKER_CONN_MAX_AGE: float = 600.0
    #: How often a worker, beat or relay writes that it is there; 0 switches it off.
    PRESENCE_INTERVAL: float = 10.0
    #: Due rows, and dead runs, that one sweep takes at most.
    SWEEP_LIMIT: int = 2000
    #: Messages of a queue that are out beside the first ones while nothing of that queue settles.
    RECOVERY_LIMIT: int = 200
    #: Names of tasks, with * and ?, that an app-wide adoption leaves plain Celery tasks.
    PLAIN_TASKS: Sequence[str] = ()
    #: Names of tasks, with * and ?, whose calls become rows however they are made: those of tasks that are not reliable
    #: too, and by name.
    OUTBOX_TASKS: Sequence[str] = ()
    #: Content types beside JSON, YAML and msgpack that admin and commands may decode to show arguments.
    TRUSTED_CONTENT_TYPES: Sequence[str] = ()
    #: Which code this is: a version, or a commit's hash. Kept with each run and each failure.
    RELEASE: str = dataclasses.field(default_factory=_default_release)
    #: Where a worker shows metrics to Prometheus, as "address:port": "127.0.0.1:9808"; "" for nowhere.
    METRICS_LISTEN: str = ""
    #: With it, as a bearer token, Prometheus may scrape the view ``metrics/`` of ``reliable_jobs.urls``. "": only users
    #: who may view jobs can.
    METRICS_TOKEN: str = ""
    #: Days that settled rows are kept, by status; None keeps them for ever.
    RETENTION: Mapping[str, float | None] = dataclasses.field(default_factory=_default_retention)

    def __post_init__(self) -> None:
        if self.DISPATCH not in ("on_commit", "relay"):
            raise ImproperlyConfigured(f"RELIABLE_JOBS['DISPATCH'] is {self.DISPATCH!r}; use 'on_commit' or 'relay'.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", "float"):
                self._check_number(field.name, field.type, value)
        if self.DELIVERY_BATCH > 100:
            raise ImproperlyConfigured(
                f"RELIABLE_JOBS['DELIVERY_BATCH'] is {self.DELIVERY_BATCH}; it must be at most 100."
            )
        for name in ("PLAIN_TASKS", "OUTBOX_TASKS", "TRUSTED_CONTENT_TYPES"):
            self._check_names(name, getattr(self, name))
        if not isinstance(self.RELEASE, str) or len(self.RELEASE) > RELEASE_LENGTH or "\x00" in self.RELEASE:
            raise ImproperlyConfigured(
                f"RELIABLE_JOBS['RELEASE'] is {self.RELEASE!r:.250}; it must be a string of at most {RELEASE_LENGTH} "
                "characters, e.g. a version or the hash of a commit."
            )
        if not isinstance(self.METRICS_TOKEN, str) or not self.METRICS_TOKEN.isascii():
            raise ImproperlyConfigured("RELIABLE_JOBS['METRICS_TOKEN'] must be a string of ASCII characters.")
        if self.METRICS_LISTEN != "":
            address(self.METRICS_LISTEN)
        if not isinstance(self.RETENTION, Mapping):
            raise ImproperlyConfigured(
                f"RELIABLE_JOBS['RETENTION'] is {self.RETENTION!r}; it must be a dict of days by status."
            )
        unknown = set(self.RETENTION) - {str(status) for status in FINAL}
        if unknown:
            raise ImproperlyConfigured(
                f"RELIABLE_JOBS['RETENTION'] names {sorted(unknown)}; only settled rows are pruned: {', '.join(FINAL)}."
            )
        for status, days in self.RETENTION.items():
            if days is not None:
                self._check_number(f"RETENTION[{status!r}]", "float", days)
        # A status left out of the dict keeps its default instead of being kept for ever by accident.
        object.__setattr__(self, "RETENTION", {**_default_retention(), **self.RETENTION})

    @staticmethod
    def _check_names(name: str, value: Any) -> None:
        if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(item, str) for item in value):
            raise ImproperlyConfigured(f"RELIABLE_JOBS[{name!r}] is {value!r}; it must be a list of strings.")

    @staticmethod
    def _check_number(name: str, kind: str, value: Any) -> None:
        allowed = (int,) if kind == "int" else (int, float)
        may_be_zero = name in _MAY_BE_ZERO or name.startswith("RETENTION")
        if isinstance(value, bool) or not isinstance(value, allowed):
            wanted = "a whole number" if kind == "int" else "a number"
            raise ImproperlyConfigured(f"RELIABLE_JOBS[{name!r}] is {value!r}; it must be {wanted}.")
        if not value >= 0 or value == float("inf") or (value == 0 and not may_be_zero):
            raise ImproperlyConfigured(f"RELIABLE_JOBS[{name!r}] is {value!r}; it must be finite and above zero.")


def address(text: Any) -> tuple[str, int]:
    """Host and port of METRICS_LISTEN.

    Raises:
        django.core.exceptions.ImproperlyConfigured: it names none.
    """
    host, _, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ImproperlyConfigured(
            f"RELIABLE_JOBS['METRICS_LISTEN'] is {text!r}; it must be an address and a port, e.g. '127.0.0.1:9808', or "
            "'0.0.0.0:9808' for all addresses."
        )
    return host.strip("[]"), int(port)


def load() -> Settings:
    """Read and validate Django's settings.

    Raises:
        django.core.exceptions.ImproperlyConfigured: see :class:`Settings`.
    """
    given = getattr(django_settings, "RELIABLE_JOBS", {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"RELIABLE_JOBS must be a dict, not {type(given).__name__}.")
    known = [field.name for field in dataclasses.fields(Settings)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(known)}."
            raise ImproperlyConfigured(f"RELIABLE_JOBS has the unknown key {key!r}.{hint}")
    return Settings(**given)


#: How often the settings have changed (``override_settings``).
_changes = 0


def _forget(*, setting: str, **kwargs: Any) -> None:
    global _changes
    if setting == "RELIABLE_JOBS":
        _changes += 1
        vars(settings).clear()


setting_changed.connect(_forget, dispatch_uid="reliable_jobs.conf")


class _Lazy:
    """``conf.settings.GRACE`` is the value as it is now. All are kept as attributes once one has been read."""

    def __getattr__(self, name: str) -> Any:
        before = _changes
        values = vars(load())
        vars(self).update(values)
        if before != _changes:  # while this thread read them: the old ones must not be kept
            vars(self).clear()
        if name not in values:
            raise AttributeError(f"RELIABLE_JOBS has no {name!r}.")
        return values[name]


settings = _Lazy()
