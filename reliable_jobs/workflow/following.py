"""What a message says shall follow its job, and the job that it follows."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from reliable_jobs.workflow.unit import unit_of_work

#: The names in a message, and on a request.
NAMES = ("callbacks", "errbacks", "chain")


@dataclasses.dataclass(frozen=True)
class Following:
    """What a message says shall follow its job; not nothing."""

    callbacks: Sequence[Any] = ()
    errbacks: Sequence[Any] = ()
    #: The next step last.
    chain: Sequence[Any] = ()

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Following | None:
        """Read a message's part for it, or a request. What is no signature is left out. None: nothing follows."""
        lists = (said.get(name) for name in NAMES)
        found = [
            tuple(one for one in some if isinstance(one, Mapping)) if isinstance(some, (list, tuple)) else ()
            for some in lists
        ]
        return cls(*found) if any(found) else None

    @property
    def is_group(self) -> bool:
        """Whether the next step is a group."""
        return bool(self.chain) and self.chain[-1].get("subtask_type") == "group"

    def as_request_has_it(self) -> dict[str, Any]:
        return {name: list(getattr(self, name)) or None for name in NAMES}


@dataclasses.dataclass(frozen=True)
class Ended:
    """The job that something follows."""

    app: Any
    using: str
    job_id: uuid.UUID
    #: Celery's id, which is the job's unless the message came from elsewhere.
    task_id: str
    root_id: Any
    queue: str
    #: Of the message; inherited where the project says so.
    priority: int | None = None

    def unit(self) -> Any:
        """The unit of work of what follows."""
        inherited = self.priority if self.app.conf.task_inherit_parent_priority else None
        return unit_of_work(self.app, self.using, parent_id=self.task_id, root_id=self.root, priority=inherited)

    @property
    def root(self) -> Any:
        return self.root_id or self.task_id


def is_written_here(
    app: Any, signature: Mapping[str, Any], task_id: str, *, before: Mapping[str, Any] | None = None
) -> bool:
    """Whether the task of a canvas that has an id becomes a row wherever it is started. One that is not reliable does
    so in the settlement of a reliable task, and not where a plain worker or a result backend starts it.

    Args:
        before: what precedes the canvas, where it is known.
    """
    kind, kwargs = signature.get("subtask_type"), signature.get("kwargs") or {}
    if kind == "chord":
        return is_written_here(app, kwargs.get("body") or {}, task_id, before=signature)
    if kind == "chain":
        for step in kwargs.get("tasks") or ():
            if task_id in _ids(step):
                return is_written_here(app, step, task_id, before=before)
            before = step
        return True
    if _is_reliable(app, signature) or before is None:
        return True
    return before.get("subtask_type") is None and _is_reliable(app, before)


def _is_reliable(app: Any, signature: Mapping[str, Any]) -> bool:
    return bool(getattr(app.tasks.get(signature.get("task")), "writes_outbox", False))


def _ids(signature: Mapping[str, Any]) -> set[str]:
    """Ids of the tasks of a canvas, without the headers of its chords."""
    kind, kwargs = signature.get("subtask_type"), signature.get("kwargs") or {}
    if kind == "chord":
        return _ids(kwargs.get("body") or {})
    if kind == "chain":
        return {one for step in kwargs.get("tasks") or () for one in _ids(step)}
    return {(signature.get("options") or {}).get("task_id") or ""}
