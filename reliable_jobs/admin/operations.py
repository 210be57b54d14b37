"""Requeue and cancel of a few jobs, from the list and from a job's page: one page that asks, one POST that acts.

All jobs that a filter selects are acts.py's business.

Everything goes through lifecycle/ and workflow/cancelling.py, with the user's name for the job's own history, and into
Django's admin log.
"""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.validators import RegexValidator
from django.http import HttpRequest
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from reliable_jobs import lifecycle
from reliable_jobs.admin.wording import number
from reliable_jobs.lifecycle import Report, workflows
from reliable_jobs.models import Job
from reliable_jobs.status import Status
from reliable_jobs.translatable import shown
from reliable_jobs.workflow import cancelling

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise

#: Kinds of reasons that one message names.
REASONS_SHOWN = 5


class CancelForm(forms.Form):
    """Nothing to fill in: the button is the answer."""


class RequeueForm(forms.Form):
    queue = forms.CharField(
        required=False,
        max_length=255,
        label=_("To another queue"),
        help_text=_("Leave it empty to keep each job's own queue."),
        validators=[RegexValidator(r"^[^\x00-\x1f\x7f]*$", _("A queue's name has no control characters."))],
        widget=forms.TextInput(attrs={"list": "known-queues", "autocomplete": "off", "class": "vTextField"}),
    )


@dataclasses.dataclass(frozen=True)
class Operation:
    name: str
    label: StrPromise
    #: Of the list's action.
    action: StrPromise
    #: Of the page that asks, and of its button; %(what)s stands for the jobs.
    title: StrPromise
    #: What Django's admin log has, in English: "Requeued".
    logged: str
    #: Says so many jobs were done, and to which queue they go.
    done: Callable[[int, str], str]
    #: What to know before pressing the button.
    explanation: StrPromise
    form: type[forms.Form]
    run: Callable[[list[uuid.UUID], str, str, dict[str, Any]], Report]
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


def _requeued(count: int, queue: str) -> str:
    values = {"count": number(count), "queue": queue}
    if queue:
        text = ngettext(
            "%(count)s job requeued to queue %(queue)s.", "%(count)s jobs requeued to queue %(queue)s.", count
        )
    else:
        text = ngettext("%(count)s job requeued.", "%(count)s jobs requeued.", count)
    return " ".join([text % values, gettext("The sweeper publishes what is due within seconds.")])


def _cancelled(count: int, queue: str) -> str:
    return ngettext("%(count)s job cancelled.", "%(count)s jobs cancelled.", count) % {"count": number(count)}


OPERATIONS = {
    "requeue": Operation(
        name="requeue",
        label=_("Requeue"),
        action=_("Requeue selected jobs…"),
        title=_("Requeue %(what)s"),
        logged="Requeued",
        done=_requeued,
        explanation=_(
            "Settled jobs start anew with fresh counters; waiting ones become due now. Running ones are skipped."
        ),
        form=RequeueForm,
        run=_requeue,
    ),
    "cancel": Operation(
        name="cancel",
        label=_("Cancel"),
        action=_("Cancel selected jobs…"),
        title=_("Cancel %(what)s"),
        logged="Cancelled",
        done=_cancelled,
        explanation=_(
            "Waiting jobs are settled as cancelled and do not run; they can be requeued. Running and settled ones are "
            "skipped."
        ),
        form=CancelForm,
        run=_cancel,
    ),
    "cancel_workflow": Operation(
        name="cancel_workflow",
        label=_("Cancel the workflow"),
        action=_("Cancel the workflows of selected jobs…"),
        title=_("Cancel the workflow of %(what)s"),
        logged="Workflow cancelled",
        done=_cancelled,
        explanation=_(
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

    @classmethod
    def of(cls, rows: Any) -> Chosen:
        """The jobs of a queryset, in its order."""
        return cls(
            [Job(pk=pk, task=task, status=status) for pk, task, status in rows.values_list("pk", "task", "status")]
        )

    def by_status(self) -> list[tuple[str, int]]:
        return Counter(job.get_status_display() for job in self.jobs).most_common()

    @property
    def succeeded(self) -> int:
        return sum(job.status == Status.SUCCEEDED for job in self.jobs)


def carry_out(
    operation: Operation, request: HttpRequest, chosen: Chosen, using: str, options: dict[str, Any]
) -> Report:
    """Do it; log it in Django's admin log; say what was done and what was skipped and why."""
    user: Any = request.user
    queue = options.get("queue", "")
    by_id = {job.pk: job for job in chosen.jobs}
    total = operation.run(list(by_id), using, user.get_username(), options)
    acted = chosen.jobs if operation.of_workflows else [by_id[pk] for pk in total.done]
    LogEntry.objects.log_actions(user.pk, acted, CHANGE, operation.logged + (f" to queue {queue}." if queue else "."))
    if total.done:
        messages.success(request, operation.done(len(total.done), queue))
    if total.skipped:
        messages.warning(request, _skips(total.skipped))
    return total


def _skips(skipped: dict[uuid.UUID, str]) -> str:
    by_reason: dict[str, list[uuid.UUID]] = {}
    for pk, why in skipped.items():
        by_reason.setdefault(shown(why), []).append(pk)
    parts = [
        f"{number(len(ids))} × {why} ({', '.join(str(pk) for pk in ids[:3])}{', …' if len(ids) > 3 else ''})"
        for why, ids in itertools.islice(by_reason.items(), REASONS_SHOWN)
    ]
    rest = sum(len(ids) for ids in by_reason.values()) - sum(
        len(ids) for ids in itertools.islice(by_reason.values(), REASONS_SHOWN)
    )
    if rest:
        parts.append(
            ngettext("%(count)s for another reason", "%(count)s for other reasons", rest) % {"count": number(rest)}
        )
    text = ngettext("%(count)s job skipped: %(reasons)s.", "%(count)s jobs skipped: %(reasons)s.", len(skipped))
    return text % {"count": number(len(skipped)), "reasons": "; ".join(parts)}
