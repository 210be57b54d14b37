"""The wrapper around Celery's tracer of a reliable task: it always answers, and what went wrong around the run is on
the job's row before the message is acknowledged."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry
from celery.states import FAILURE, IGNORED, REJECTED, RETRY

from reliable_jobs.compat.billiard import described
from reliable_jobs.compat.celery_run import NOTHING_FOLLOWS, answer_of_tracer, current_request
from reliable_jobs.errors import FunctionOutOfMemory, NotRecorded
from reliable_jobs.lifecycle import db_errors
from reliable_jobs.logs import job_logger
from reliable_jobs.run import unreported_errors
from reliable_jobs.run.trail import TRAIL, Trail
from reliable_jobs.workflow.following import Following

if TYPE_CHECKING:
    from reliable_jobs.task_types import RunnableTask

logger = job_logger(__name__)

#: Seconds before a message that could not be recorded goes back: it comes again at once.
PAUSE = 1.0


def that_answers(task: RunnableTask, tracer: Callable[..., Any], *, keep_frames: bool = False) -> Callable[..., Any]:
    """Celery's tracer of a task, made to answer whatever happens: a result backend that is away, a hook that raises
    where none may. A pool's thread or greenlet would swallow the error, and the message would stay unacknowledged as
    long as the worker lives; after as many of those as it prefetches, a worker gets no more.

    A delivery that ends without a word on its job's row is recorded there.

    Args:
        keep_frames: leave the errors their tracebacks, for a caller in this process.
    """

    def trace(task_id: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        trail, request = Trail(), request or {}
        info = request.get("delivery_info") or {}
        # Inside a bundle the row is the bundle's business.
        alone = request.get("reliable_bundle") is None and isinstance(info, dict)
        if alone:
            if not NOTHING_FOLLOWS.items() <= request.items():  # as in most messages
                trail.following = Following.of(request)
            request = {**request, **NOTHING_FOLLOWS, "delivery_info": {**info, TRAIL: trail}}
        try:
            answer = tracer(task_id, args, kwargs, request)
        except Reject as asked:
            answer = answer_of(asked)  # by a hook, as Celery lets it
        except Exception as error:
            if trail.answer is None and alone:
                answer = _recorded(task, trail, args, kwargs, request, error, fired=False)
            else:
                logger.error(
                    "Job %s: Celery could not go on after its run. How the job stands is in its row. Look at the "
                    "result backend, and at the task's on_success, on_failure and after_return.\n%s",
                    task_id,
                    db_errors.redact(db_errors.trace(error), task.secrets(args, kwargs)),
                )
                with _pushed(task, args, kwargs, request):
                    unreported_errors.note(task, error)
                answer = answer_of(error)
        else:
            if trail.answer is None and alone and answer.info is not None:
                met, fired = trail.error or answer.info.retval, trail.error is None
                answer = _recorded(task, trail, args, kwargs, request, met, fired=fired) or answer
        if not keep_frames:
            _forget_frames(answer)
        return answer

    return trace


def answer_of(error: BaseException) -> Any:
    """What the tracer would have answered for an error; the worker's parent process reads it."""
    if isinstance(error, MemoryError):
        error = FunctionOutOfMemory("in a hook")  # it would end the whole worker
    return answer_of_tracer(error, _state(error))


def _state(error: BaseException) -> str:
    kinds = ((Ignore, IGNORED), (Retry, RETRY), (Reject, REJECTED))
    return next((state for kind, state in kinds if isinstance(error, kind)), FAILURE)


def _recorded(
    task: RunnableTask, trail: Trail, args: Any, kwargs: Any, request: Any, error: BaseException, *, fired: bool
) -> Any:
    """Write on the row what the delivery met; returns the answer for the parent process, None for the tracer's own.

    Args:
        fired: the tracer has told the hooks of this error, so the job ends by it now.
    """
    try:
        with _pushed(task, args, kwargs, request):
            trail.show_following(task.request)
            (unreported_errors.write_failure if fired else unreported_errors.write_interruption)(task, trail, error)
            assert trail.answer is not None
            _, told = trail.answer
            try:
                task.backend.align(str(task.request.id), task.request)  # what the tracer stored may be another end
            except Exception as trouble:
                logger.warning("Job %s: its result backend was not brought in line: %r", task.request.id, trouble)
            if fired or told is None:
                return None
            if _state(told) == FAILURE:
                _tell_hooks(task, told)
            return answer_of(told)
    except Reject as held_too_long:
        return answer_of(held_too_long)
    except NotRecorded as again:
        time.sleep(PAUSE)
        return answer_of(again)


def _pushed(task: RunnableTask, args: Any, kwargs: Any, request: Any) -> AbstractContextManager[None]:
    """Inside, the delivery's request is the task's current one, as it was in the tracer."""
    return current_request(task, Context(request, args=args, kwargs=kwargs, called_directly=False))


def _tell_hooks(task: RunnableTask, error: BaseException) -> None:
    """What Celery's tracer does for a failure, where it can't any more."""
    request = task.request
    try:
        raise error
    except BaseException:
        info = described()
    call = (error, request.id, request.args, request.kwargs, info)
    try:
        task.on_failure(*call)
    except Exception:  # the user's, of any kind
        logger.exception("Job %s: its on_failure failed.", request.id)
    signals.task_failure.send(
        sender=task,
        task_id=request.id,
        exception=error,
        args=request.args,
        kwargs=request.kwargs,
        traceback=error.__traceback__,
        einfo=info,
    )


def _forget_frames(answer: Any) -> None:
    """Let go of the frames of the errors that a delivery met, once it is answered. Frame, error and answer refer to
    each other: they would stay, with all that a run held, until a full garbage collection."""
    if answer.info is None:
        return
    seen: set[int] = set()
    left = [answer.info.retval, answer.retval.exception]
    while left:
        error = left.pop()
        if not isinstance(error, BaseException) or id(error) in seen:
            continue
        seen.add(id(error))
        left += [error.__cause__, error.__context__, getattr(error, "exc", None)]
        error.__traceback__ = None
