"""``replace()``: another task or canvas runs in the job's place, under its id."""

from __future__ import annotations

from typing import Any

from celery import Signature, group, maybe_signature
from celery.exceptions import Ignore

from reliable_jobs.task import stages
from reliable_jobs.task.control import RunControl


class Replacing(RunControl):
    """``replace()`` of ReliableTask."""

    def replace(self, sig: Signature) -> Any:
        """Celery's ``replace()``, by any task or canvas.

        Args:
            sig: what is to run in this job's place, under its id.

        Raises:
            celery.exceptions.Ignore: always, in a worker.

        Example::

            @reliable_task(bind=True)
            def export(self: ReliableTask, year: int) -> None:
                raise self.replace(fetch_month.si(year, 1) | fetch_month.si(year, 2))
        """
        steps = list(sig.tasks) if sig.get("subtask_type") == "chain" else []
        if steps and isinstance(steps[-1], group):
            # As Celery 5.7 does: the group's parts have ids of their own, and none this job's.
            sig.tasks = [*steps[:-1], steps[-1] | self.app.tasks["celery.accumulate"].s(index=0)]
        return super().replace(sig)

    def on_replace(self, sig: Signature) -> Any:
        """The end of Celery's ``replace()``: the same job, with other content. What the task function wrote stays.

        By one reliable task it is the same row. By anything else the row is held for the last task, which has its id.

        Raises:
            celery.exceptions.Ignore: always, in a worker.
        """
        run = self._run_in_progress()
        if run is None:
            return super().on_replace(sig)
        head: Any = sig
        rest: list[Any] = []
        if sig.get("subtask_type") == "chain":  # Celery appends what was to follow this job
            head, *rest = (maybe_signature(part, app=self.app) for part in sig.tasks)
        target = self.app.tasks.get(head.task)
        # In a canvas of the function's making the last task has this job's id, and not the first.
        same = head.options.get("task_id") == self.request.id
        if not same or head.get("subtask_type") is not None or not getattr(target, "writes_outbox", False):
            run.again = stages.state.Again(counts=False, replaced_by=sig)
            raise Ignore("Replaced by new task")
        options = {name: value for name, value in head.options.items() if name not in ("task_id", "countdown", "eta")}
        if rest:
            options["chain"] = rest[::-1]
        link, link_error, shadow = (options.pop(name, None) for name in ("link", "link_error", "shadow"))
        content = target._render(head.args, head.kwargs, self.request.id, link, link_error, shadow, options)
        expires = self._expiry(run, head.options.get("expires"))
        countdown = self._seconds("countdown", head.options.get("countdown"))
        at = None if countdown else self._row_time(run, self._time("eta", head.options.get("eta")))
        run.again = stages.state.Again(delay=countdown or 0.0, at=at, counts=False, content=content, expires=expires)
        raise Ignore("Replaced by new task")
