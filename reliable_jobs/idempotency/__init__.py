"""For tasks that come by plain Celery messages: ``send_task`` of another program, another language, a producer that is
not adopted yet. Such a message may be sent twice under two task ids, so its id says nothing; what it is *about* does.

- :class:`GetOrCreateTask` and :class:`UpdateOrCreateTask`: the work is one row of a model, unique by constraint.
- :class:`IdempotentTask`: any function, once per natural key; further messages get the stored result of the first.
- :func:`once`: the same for a function that is no reliable task at all.

The last two remember a key as long as the row that holds it: ``RELIABLE_JOBS["RETENTION"]["succeeded"]`` days (7 by
default). Where a repetition may come later than that, keep the fact in a model of your own, as the first two do.
"""

from __future__ import annotations

from reliable_jobs.idempotency.get_or_create import GetOrCreateTask, UpdateOrCreateTask
from reliable_jobs.idempotency.natural_key import IdempotentTask
from reliable_jobs.idempotency.receipt import once

__all__ = ["GetOrCreateTask", "IdempotentTask", "UpdateOrCreateTask", "once"]
