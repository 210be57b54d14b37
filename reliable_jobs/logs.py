"""Log records that say which job they are about: fields for JSON formatters and format strings.

Needs no loaded apps: Django configures logging before it loads them.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import current_task

#: What a record gets that is about no job.
NONE: dict[str, Any] = {"job": "", "task": "", "queue": "", "attempt": ""}


class JobFields(logging.Filter):
    """Gives each record the fields ``job`` (id), ``task``, ``queue`` (names) and ``attempt`` (a number, 1 for the
    first), of the task that runs in this thread; texts that are empty where none does. What a record has already stays.
    It lets all records pass. Plain Celery tasks are told of, too.

    Example::

        LOGGING = {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"job": {"()": "reliable_jobs.logs.JobFields"}},
            "formatters": {"line": {"format": "{levelname} {job} {task} {message}", "style": "{"}},
            "handlers": {"console": {"class": "logging.StreamHandler", "filters": ["job"], "formatter": "line"}},
            "root": {"handlers": ["console"], "level": "INFO"},
        }
    """

    def filter(self, record: logging.LogRecord) -> bool:
        missing = [name for name in NONE if not hasattr(record, name)]
        if missing:
            found = _current() or NONE
            for name in missing:
                setattr(record, name, found[name])
        return True


def job_logger(name: str) -> logging.Logger:
    """The logger of a module whose records are about jobs: they have the fields without a filter on any handler."""
    logger = logging.getLogger(name)
    if not any(isinstance(one, JobFields) for one in logger.filters):
        logger.addFilter(JobFields())
    return logger


def fields(job_id: Any, task: str = "", queue: str = "", attempt: int | str = "") -> dict[str, Any]:
    """``extra`` of a record about a job that does not run in this thread."""
    return {"job": str(job_id), "task": task, "queue": queue, "attempt": attempt}


def attempt(retries: Any) -> int | str:
    """The number of an attempt, 1 for the first. A plain task's message may say anything: a record is made of that,
    too, as an error here would be the task function's."""
    return retries + 1 if isinstance(retries, int) else "" if retries else 1


def _current() -> dict[str, Any] | None:
    request = current_task.request if current_task else None
    if request is None or not request.id:
        return None
    info = request.delivery_info
    queue = info.get("routing_key") if isinstance(info, dict) else None
    return fields(request.id, current_task.name, queue or "", attempt(request.retries))
