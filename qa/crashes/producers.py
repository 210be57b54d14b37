"""What an application does that enqueues jobs: each kind leaves one order, ``Effect(name="order …")``, and its jobs."""

from __future__ import annotations

from django.db import transaction

from tests.testapp.models import Effect
from tests.testapp.tasks import effect

#: How many jobs each kind enqueues.
JOBS = {"atomic": 1, "savepoint": 1, "autocommit": 1, "keyed": 1, "bulk": 3}


def atomic(name: str, queue: str) -> None:
    with transaction.atomic():
        Effect.objects.create(name=f"order {name}")
        effect.apply_async((name,), queue=queue)


def savepoint(name: str, queue: str) -> None:
    """One job in a savepoint that stays, one in a savepoint that is undone."""
    with transaction.atomic():
        Effect.objects.create(name=f"order {name}")
        with transaction.atomic():
            effect.apply_async((name,), queue=queue)
        with transaction.atomic():
            effect.apply_async((f"undone {name}",), queue=queue)
            transaction.set_rollback(True)


def autocommit(name: str, queue: str) -> None:
    """The order is committed before its job: only the job's own insert says whether there is one."""
    Effect.objects.create(name=f"order {name}")
    effect.apply_async((name,), queue=queue)


def keyed(name: str, queue: str) -> None:
    with transaction.atomic():
        Effect.objects.create(name=f"order {name}")
        effect.apply_async((name,), queue=queue, key=f"order {name}")
        effect.apply_async((name,), queue=queue, key=f"order {name}")


def bulk(name: str, queue: str) -> None:
    with transaction.atomic():
        Effect.objects.create(name=f"order {name}")
        effect.bulk_delay([(name,) for _ in range(JOBS["bulk"])], queue=queue)
