"""What Celery's own methods of a task take and return, for type checkers: Celery has no types, and those of the package
celery-types know the arguments of few tasks. Nothing here does anything at run time.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Generic

from celery.contrib.django.task import DjangoTask

from reliable_jobs.task_types import P, R_co, RunP, RunR_co, Runs

if TYPE_CHECKING:
    from celery.canvas import Signature  # in celery/__init__.py type checkers do not find it
    from celery.result import EagerResult

    from reliable_jobs.results import JobResult


class TypedTask(DjangoTask, Generic[P, R_co]):
    """A Celery task with the arguments ``P`` and the return value ``R_co`` of its function."""

    #: ``ReliableTask[P, R]`` at run time, as in newer versions of Celery. It says nothing there.
    __class_getitem__: Any = classmethod(types.GenericAlias)

    if TYPE_CHECKING:
        name: str

        def run(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

        # By way of run(), so that a class-based task's own counts, without parameters of its class.
        def delay(self: Runs[RunP, RunR_co], *args: RunP.args, **kwargs: RunP.kwargs) -> JobResult[RunR_co]: ...

        def si(self: Runs[RunP, RunR_co], *args: RunP.args, **kwargs: RunP.kwargs) -> Signature[RunR_co]: ...

        # Of a step in a chain, which gets its first arguments from the step before.
        def s(self: Runs[RunP, RunR_co], *args: Any, **kwargs: Any) -> Signature[RunR_co]: ...

        def apply(
            self: Runs[RunP, RunR_co],
            args: tuple[Any, ...] | list[Any] | None = None,
            kwargs: dict[str, Any] | None = None,
            **options: Any,
        ) -> EagerResult[RunR_co]: ...
