"""The cases as tasks, plain and reliable, and receivers that take note of each signal: ``celery worker -I``."""

from __future__ import annotations

from typing import Any

from celery import Task, shared_task, signals

from reliable_jobs import ReliableTask
from tests.contract import cases
from tests.contract.notes import note

PREFIX = "contract."


def shown(value: Any) -> str:
    """A value of a hook or signal as it can be compared."""
    exc = getattr(value, "exc", None)
    if isinstance(value, BaseException):
        text = f"{type(value).__name__}: {value}"
        return f"{text} of {type(exc).__name__}" if isinstance(exc, BaseException) else text
    return repr(value)


class Noting(Task):
    """Takes note of each hook."""

    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        note(task_id, f"before_start{tuple(args)} {kwargs}")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        note(task_id, f"on_success {shown(retval)}")

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(task_id, f"on_failure {shown(exc)} {type(einfo).__name__}")

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(task_id, f"on_retry {shown(exc)} {type(einfo).__name__}")

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(task_id, f"after_return {status} {shown(retval)} {type(einfo).__name__}")

    def on_replace(self, sig: Any) -> Any:
        note(self.request.id, f"on_replace {sig.task.rpartition('.')[2]}")
        return super().on_replace(sig)


class PlainNoting(Noting):
    abstract = True


class ReliableNoting(Noting, ReliableTask):
    abstract = True


def _made(name: str, case: cases.Case, base: type, kind: str) -> Any:
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        note(self.request.id, f"run {self.request.retries}")
        return case.body(self, *args, **kwargs)

    # As late as the reliable one acknowledges its message.
    usual = {"acks_late": True} if kind == "plain" else {}
    options = usual | {key: value for key, value in case.made.items() if key != "reruns" or kind == "reliable"}
    hooked = type(f"{kind}{name.title()}", (base,), {**case.hooks, "abstract": True, "__module__": __name__})
    return shared_task(name=f"{PREFIX}{kind}.{name}", base=hooked, bind=True, **options)(run)


PLAIN = {name: _made(name, case, PlainNoting, "plain") for name, case in cases.CASES.items()}
RELIABLE = {name: _made(name, case, ReliableNoting, "reliable") for name, case in cases.CASES.items()}
cases.ANOTHER[False] = _made("another", cases.Case(cases.returns), PlainNoting, "plain")
cases.ANOTHER[True] = _made("another", cases.Case(cases.returns), ReliableNoting, "reliable")


def _is_ours(name: Any) -> bool:
    return str(name).startswith(PREFIX)


@signals.task_received.connect(weak=False)
def _received(request: Any, **kwargs: Any) -> None:
    if _is_ours(request.name):
        note(request.id, "task_received")


@signals.task_prerun.connect(weak=False)
def _prerun(task_id: str, task: Any, args: Any, kwargs: Any, **more: Any) -> None:
    if _is_ours(task.name):
        note(task_id, "task_prerun")


@signals.task_postrun.connect(weak=False)
def _postrun(task_id: str, task: Any, args: Any, kwargs: Any, retval: Any, state: str, **more: Any) -> None:
    if _is_ours(task.name):
        note(task_id, f"task_postrun {state} {shown(retval)}")


@signals.task_success.connect(weak=False)
def _success(sender: Any, result: Any, **kwargs: Any) -> None:
    if _is_ours(sender.name):
        note(sender.request.id, f"task_success {shown(result)}")


@signals.task_failure.connect(weak=False)
def _failure(sender: Any, task_id: str, exception: Any, einfo: Any, **kwargs: Any) -> None:
    if _is_ours(getattr(sender, "name", sender)):
        note(task_id, f"task_failure {shown(exception)} {type(einfo).__name__}")


@signals.task_retry.connect(weak=False)
def _retry(sender: Any, request: Any, reason: Any, einfo: Any, **kwargs: Any) -> None:
    if _is_ours(sender.name):
        note(request.id, f"task_retry {shown(reason)} {type(einfo).__name__}")


@signals.task_revoked.connect(weak=False)
def _revoked(sender: Any, request: Any, terminated: bool, signum: Any, expired: bool, **kwargs: Any) -> None:
    if _is_ours(getattr(sender, "name", sender)):
        note(request.id, f"task_revoked terminated={terminated} expired={expired}")


@signals.task_internal_error.connect(weak=False)
def _internal(sender: Any, task_id: str, exception: Any, **kwargs: Any) -> None:
    if _is_ours(sender.name):
        note(task_id, f"task_internal_error {shown(exception)}")
