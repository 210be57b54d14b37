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
    """What a message says shall follow its job."""

    callbacks: Sequence[Any] = ()
    errbacks: Sequence[Any] = ()
    #: The next step last.
    chain: Sequence[Any] = ()

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Following:
        """Read a message's part for it, or a request."""
        return cls(*(tuple(said.get(name) or ()) for name in NAMES))

    def __bool__(self) -> bool:
        return bool(self.callbacks or self.errbacks or self.chain)

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
    #: Whether a result backend is told nothing of it.
    ignores_result: bool = False

    def unit(self) -> Any:
        """The unit of work of what follows."""
        inherited = self.priority if self.app.conf.task_inherit_parent_priority else None
        return unit_of_work(self.app, self.using, parent_id=self.task_id, root_id=self.root, priority=inherited)

    @property
    def root(self) -> Any:
        return self.root_id or self.task_id
