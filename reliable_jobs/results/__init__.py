"""What came of a job: the row is the result, whoever asks.

Enters: a task id, by ``AsyncResult``, ``GroupResult`` or Celery's own tracer. Leaves: one answer, as Celery's result
backends give it. Never here: a change of ``status``, a lock on a job's row, or an answer that is kept.
Read answer.py first: it decides. backend.py is Celery's result backend, around the one that the project has configured.
"""

from __future__ import annotations

from reliable_jobs.compat import celery_app
from reliable_jobs.results.answer import result_of
from reliable_jobs.results.backend import LedgerBackend
from reliable_jobs.results.copies import bring_in_line
from reliable_jobs.results.job_result import JobResult

celery_app.ledger = LedgerBackend.around

__all__ = ["JobResult", "LedgerBackend", "bring_in_line", "result_of"]
