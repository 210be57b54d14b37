"""Requeue and cancel, from the list and from a job's page: one page that asks, one POST that acts.

Everything goes through lifecycle.py, with the user's name for the job's own history, and into Django's admin log.
"""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

from celery import current_app
from django import forms
from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.validators import RegexValidator
from django.http import HttpRequest

from reliable_jobs import lifecycle
from reliable_jobs.admin.listing import BOUND
from reliable_jobs.lifecycle import Report, workflows
from reliable_jobs.models import Job
from reliable_jobs.status import Status
from reliable_jobs.workflow import cancelling

#: Jobs per step: what is done is in the admin log before the next step begins.
STEP = 1000
#: Kinds of reasons that one message names.
REASONS_SHOWN = 5


class CancelForm(forms.Form):
    """Nothing to fill in: the button is the answer."""


class RequeueForm(forms.Form):
    queue = forms.CharField(
        required=False,
        max_length=255,
        label="To another queue",
        help_text="Leave it empty to keep each job's own queue.",
        validators=[RegexValidator(r"^[^\x00-\x1f\x7f]*$", "A queue's name has no control characters.")],
        widget=forms.TextInput(attrs={"list": "known-queues", "autocomplete": "off", "class": "vTextField"}),
    )


@dataclasses.dataclass(frozen=True)
class Operation:
    name: str
    #: "Requeue", "requeued": for titles, buttons and messages.
    verb: str
    done: str
    #: What to know before pressing the button.
    explanation: str
    form: type[forms.Form]
    run: Callable[[list[uuid.UUID], str, str, dict[str, Any]], Report]
    #: What to know afterwards.
    afterwards: str = ""
    #: The permission that it needs, of the model's.
    permission: str = ""
    #: It is done to the jobs' workflows; what it changes are other jobs, too.
    of_workflows: bool = False


def _requeue(ids: list[uuid.UUID], using: str, actor: str, options: dict[str, Any]) -> Report:
    return lifecycle.requeue(ids, using, actor=actor, queue=options.get("queue") or None)


def _cancel(ids: list[uuid.UUID], using: str, actor: str, options: dict[str, Any]) -> Report:
    return lifecycle.cancel(ids, using, actor=actor)


def _cancel_workflows(ids: list[uuid.UUID], using: str, actor: str, options: dict[str, Any]) -> Report:
    total = Report()
    for root_id in dict.fromkeys(workflows.root_of(one, using) for one in ids):
        if root_id is not None:
            total.add(cancelling.cancel_workflow(root_id, using, actor=actor))
    return total


OPERATIONS = {
    "requeue": Operation(
        name="requeue",
        verb="Requeue",
        done="requeued",
        explanation=(
            "Settled jobs start anew with fresh counters; waiting ones become due now. Running ones are skipped."
        ),
        form=RequeueForm,
        run=_requeue,
        afterwards="The sweeper publishes what is due within seconds.",
    ),
    "cancel": Operation(
        name="cancel",
        verb="Cancel",
        done="cancelled",
        explanation=(
            "Waiting jobs are settled as cancelled and do not run; they can be requeued. Running and settled ones are "
            "skipped."
        ),
        form=CancelForm,
        run=_cancel,
    ),
    "cancel_workflow": Operation(
        name="cancel_workflow",
        verb="Cancel the workflow of",
        done="cancelled",
        explanation=(
            "All that has not ended of the workflows of these jobs is settled as cancelled: jobs that wait, groups "
            "with what follows them, the later steps of chains. Running parts go on, and nothing follows them. A "
            "requeue of any of the jobs lets its workflow go on."
        ),
        form=CancelForm,
        run=_cancel_workflows,
        permission="cancel",
        of_workflows=True,
    ),
}


@dataclasses.dataclass
class Chosen:
    """The jobs that an operation is asked for, without anything heavy: id, task and status."""

    jobs: list[Job]
    #: There were more than one operation takes.
    more: bool = False

    @classmethod
    def of(cls, rows: Any) -> Chosen:
        """The first BOUND jobs of a queryset, in its order."""
        found = [
            Job(pk=pk, task=task, status=status)
            for pk, task, status in rows.values_list("pk", "task", "status")[: BOUND + 1]
        ]
        return cls(found[:BOUND], more=len(found) > BOUND)

    def by_status(self) -> list[tuple[str, int]]:
        return Counter(str(job.status) for job in self.jobs).most_common()

    @property
    def succeeded(self) -> int:
        return sum(job.status == Status.SUCCEEDED for job in self.jobs)


def carry_out(
    operation: Operation, request: HttpRequest, chosen: Chosen, using: str, options: dict[str, Any]
) -> Report:
    """Do it, in steps; log each step in Django's admin log; say what was done and what was skipped and why."""
    user: Any = request.user
    total = Report()
    where = f" to queue {options['queue']}" if options.get("queue") else ""
    for start in range(0, len(chosen.jobs), STEP):
        step = {job.pk: job for job in chosen.jobs[start : start + STEP]}
        report = operation.run(list(step), using, user.get_username(), options)
        if operation.of_workflows:
            acted, what = list(step.values()), f"Workflow {operation.done}."
        else:
            acted, what = [step[pk] for pk in report.done], f"{operation.done.capitalize()}{where}."
        LogEntry.objects.log_actions(user.pk, acted, CHANGE, what)
        total.add(report)
    if total.done:
        text = f"{plural(len(total.done))} {operation.done}{where}. {operation.afterwards}".strip()
        messages.success(request, text)
    if total.skipped:
        messages.warning(request, _skips(total.skipped))
    if chosen.more:
        messages.warning(
            request, f"Only the newest {BOUND:,} were taken; one action takes no more. Repeat it for the others."
        )
    return total


def _skips(skipped: dict[uuid.UUID, str]) -> str:
    by_reason: dict[str, list[uuid.UUID]] = {}
    for pk, why in skipped.items():
        by_reason.setdefault(why, []).append(pk)
    parts = [
        f"{len(ids):,} {why} ({', '.join(str(pk) for pk in ids[:3])}{', …' if len(ids) > 3 else ''})"
        for why, ids in itertools.islice(by_reason.items(), REASONS_SHOWN)
    ]
    rest = sum(len(ids) for ids in by_reason.values()) - sum(
        len(ids) for ids in itertools.islice(by_reason.values(), REASONS_SHOWN)
    )
    if rest:
        parts.append(f"{rest:,} for other reasons")
    return f"{plural(len(skipped))} skipped: {'; '.join(parts)}."


def plural(number: int) -> str:
    return f"{number:,} job{'' if number == 1 else 's'}"


def known_queues() -> list[str]:
    """The queues that Celery is configured with, to suggest; another one may be named too."""
    return sorted(current_app.amqp.queues)
