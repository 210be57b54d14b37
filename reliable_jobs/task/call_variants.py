"""The calls of a task that only say when or where ``apply_async()`` is called: on commit, and from async code."""

from __future__ import annotations

import functools
import uuid
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import transaction

from reliable_jobs.task import stages
from reliable_jobs.task.typed import TypedTask
from reliable_jobs.task_types import P, R_co, RunP, RunR_co, Runs

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from reliable_jobs.results import JobResult
    from reliable_jobs.task.options import Args, CallOptions, Kwargs


class CallVariants(TypedTask[P, R_co]):
    """``delay_on_commit()``, ``adelay()`` and their kin."""

    def delay_on_commit(self: Runs[RunP, RunR_co], *args: RunP.args, **kwargs: RunP.kwargs) -> JobResult[RunR_co]:
        """The same as ``delay()``, which already waits for the commit. With ``task_always_eager`` the function runs
        after the commit, as Celery's DjangoTask has it, while an eager ``delay()`` runs at once.

        Args, returns and raises: as ``delay()``.

        Example::

            send_receipt.delay_on_commit(order.pk)
        """
        task: Any = self
        if task.app.conf.task_always_eager:
            return task.apply_async_on_commit(args, kwargs)
        return task.delay(*args, **kwargs)

    def apply_async_on_commit(
        self, args: Args = None, kwargs: Kwargs = None, *positional: Any, **options: Unpack[CallOptions]
    ) -> JobResult[R_co]:
        """The same as ``apply_async()``, which already waits for the commit; eager as :meth:`delay_on_commit`.

        Args, returns and raises: as ``apply_async()``.

        Example::

            send_receipt.apply_async_on_commit((order.pk,), queue="mail")
        """
        if not self.app.conf.task_always_eager:
            return self.apply_async(args, kwargs, *positional, **options)
        task_id = options["task_id"] = options.get("task_id") or str(uuid.uuid4())
        using = options.get("using") or stages.databases.write_alias()
        transaction.on_commit(functools.partial(self.apply_async, args, kwargs, *positional, **options), using=using)
        return self.AsyncResult(task_id)

    async def adelay(self: Runs[RunP, RunR_co], *args: RunP.args, **kwargs: RunP.kwargs) -> JobResult[RunR_co]:
        """``delay()`` for async views: the row is written in Django's thread for database work.

        Args, returns and raises: as ``delay()``.

        Example::

            result = await send_receipt.adelay(order.pk)
        """
        task: Any = self
        return await task.aapply_async(args, kwargs)

    async def aapply_async(
        self, args: Args = None, kwargs: Kwargs = None, *positional: Any, **options: Unpack[CallOptions]
    ) -> JobResult[R_co]:
        """``apply_async()`` for async views.

        Args, returns and raises: as ``apply_async()``.

        Example::

            result = await send_receipt.aapply_async((order.pk,), queue="mail")
        """
        return await sync_to_async(self.apply_async)(args, kwargs, *positional, **options)
