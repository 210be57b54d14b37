"""A job's workflow as a tree: what it follows from, its parts, and what comes after.

A row knows its parent and the group that it owes, a group its body. From the job the way goes up to where the workflow
begins, as far as rows are there; then down again, a level at a time, so that the number of queries grows with the depth
alone. Of a group's parts the counts are shown, and the first few, those that hold it up before the others.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.db.models import Case, Count, IntegerField, Value, When
from django.db.models.functions import Left
from django.utils.translation import gettext, ngettext, pgettext

from reliable_jobs.admin.wording import first_line, number
from reliable_jobs.lifecycle.db_errors import clean
from reliable_jobs.message import debts, result_text
from reliable_jobs.message.decode import to_follow
from reliable_jobs.models import Job, JobGroup
from reliable_jobs.status import OPEN, GroupState, Status

#: Steps up from the job, and levels down from the top.
DEPTH = 30
#: Rows of a level, and nodes of the whole tree.
BREADTH, NODES = 100, 400
#: Parts of one group, and children of one job.
SHOWN = 20
#: Bytes of a message that a page decodes to see what is to follow.
READ_BYTES = 64 * 1024

#: What a group waits for, and what has gone wrong, before what is done.
_HOLD_UP = (Status.FAILED, Status.CANCELLED, Status.EXPIRED, Status.RUNNING, Status.WAITING, Status.SENT)


@dataclasses.dataclass
class Node:
    """A job, a group, or a step that has no row yet."""

    name: str
    #: Of a job or a group; "planned" for a step that is not written.
    status: str
    label: str
    job_id: uuid.UUID | None = None
    note: str = ""
    #: The job whose page it is.
    here: bool = False
    children: list[Node] = dataclasses.field(default_factory=list)
    #: Whose parts the list of jobs can show.
    group_id: uuid.UUID | None = None


def workflow_of(job: Job) -> Node | None:
    """The tree of the workflow that a job belongs to, with at most :data:`NODES` nodes; None where it is on its own.

    Raises:
        django.db.Error: the database could not be read.
    """
    using = job._state.db or "default"
    top, missing = _top(job, using)
    tree = _Tree(job, using)
    node = tree.grow(top)
    if missing is not None:
        above = gettext("has no row here: pruned, or its task is not a reliable one")
        return Node(str(missing), "missing", gettext("no row"), note=above, children=[node])
    return node if node.children or node.group_id else None


def _top(job: Job, using: str) -> tuple[Job | JobGroup, uuid.UUID | None]:
    """Where the workflow begins, and the id of a parent that is not there."""
    here: Job | JobGroup = job
    seen = {job.pk}
    for _ in range(DEPTH):
        above = _above(here, using)
        if above is None:
            return here, here.parent_id if _is_lost(here, using) else None
        if above.pk in seen:
            return here, None
        seen.add(above.pk)
        here = above
    return here, None


def _above(one: Job | JobGroup, using: str) -> Job | JobGroup | None:
    """What a job or a group is shown below."""
    groups = JobGroup.objects.using(using)
    if one.owes is not None and (found := groups.filter(pk=one.owes).first()):
        return found
    if isinstance(one, Job) and (found := groups.filter(body_id=one.pk).first()):
        return found
    if one.parent_id is not None and (row := _rows(using).filter(pk=one.parent_id).first()):
        return row
    if isinstance(one, Job):
        # A chain in a header: its first steps have handed on what they owed.
        later = _rows(using).filter(parent_id=one.pk, owes__isnull=False).first()
        if later is not None:
            return groups.filter(pk=later.owes).first()
    return None


def _is_lost(one: Job | JobGroup, using: str) -> bool:
    return one.parent_id is not None and not Job.objects.using(using).filter(pk=one.parent_id).exists()


def _rows(using: str) -> Any:
    shown = ("task", "status", "reason", "owes", "place", "parent_id", "root_id", "due_at")
    return Job.objects.using(using).only(*shown).annotate(error_start=Left("error", 200))


class _Tree:
    def __init__(self, job: Job, using: str) -> None:
        self._job, self._using = job, using
        self._seen: set[uuid.UUID] = set()
        self._left = NODES
        #: Of the level that is being grown.
        self._jobs: list[tuple[Job, Node]] = []
        self._groups: list[tuple[JobGroup, Node]] = []

    def grow(self, top: Job | JobGroup) -> Node:
        node = self._add_group(top) if isinstance(top, JobGroup) else self._add_job(top)
        assert node is not None
        for _ in range(DEPTH):
            jobs, groups, self._jobs, self._groups = self._jobs, self._groups, [], []
            if not jobs and not groups:
                break
            self._below_groups(groups)
            self._below_jobs(jobs)
        return node

    def _add_job(self, job: Any) -> Node | None:
        if job.pk in self._seen or self._left <= 0:
            return None
        self._seen.add(job.pk)
        self._left -= 1
        error = job.error_start if hasattr(job, "error_start") else job.error
        note = first_line(error, 120) if job.status in (Status.FAILED, Status.CANCELLED) else ""
        if job.status == Status.WAITING and job.due_at is None:
            note = gettext("held: a later step has its id, and ends it")
        node = Node(job.task, job.status, job.get_status_display(), job.pk, note, here=job.pk == self._job.pk)
        self._jobs.append((job, node))
        return node

    def _add_group(self, group: JobGroup) -> Node | None:
        if group.pk in self._seen or self._left <= 0:
            return None
        self._seen.add(group.pk)
        self._left -= 1
        node = Node(gettext("chord"), group.state, group.get_state_display(), note=first_line(group.error, 120))
        node.group_id = group.pk
        self._groups.append((group, node))
        return node

    def _below_groups(self, groups: list[tuple[JobGroup, Node]]) -> None:
        if not groups:
            return
        counts: dict[uuid.UUID, dict[str, int]] = {group.pk: {} for group, _ in groups}
        owing = Job.objects.using(self._using).filter(owes__in=list(counts)).order_by()
        for owes, status, found in owing.values_list("owes", "status").annotate(number=Count("pk")):
            if owes is not None:
                counts[owes][status] = found
        inner: dict[uuid.UUID, list[JobGroup]] = {}
        unfinished = JobGroup.objects.using(self._using).filter(owes__in=list(counts), state=GroupState.OPEN)
        for one in unfinished.order_by("place")[:BREADTH]:
            if one.owes is not None:
                inner.setdefault(one.owes, []).append(one)
        steps = {group.pk: list(_steps(group)) for group, _ in groups}
        bodies = self._by_id(step_id for found in steps.values() for _, step_id in found[:SHOWN] if step_id)
        for group, node in groups:
            # Before the parts: a body's parent is the last part, and it is not shown below that.
            body = [(name, bodies.get(step_id) if step_id else None) for name, step_id in steps[group.pk][:SHOWN]]
            after = [self._add_job(row) if row is not None else _planned(name, group) for name, row in body]
            self._parts(group, node, counts[group.pk], inner.get(group.pk, []))
            then = Node(pgettext("workflow", "then"), "then", "", children=[one for one in after if one is not None])
            if len(steps[group.pk]) > SHOWN:
                then.children.append(_more(more(len(steps[group.pk]) - SHOWN)))
            if then.children:
                node.children.append(then)

    def _parts(self, group: JobGroup, node: Node, counts: Mapping[str, int], inner: Sequence[JobGroup]) -> None:
        """The parts of one group: how many in which state, and the first of them."""
        rows = _rows(self._using).filter(owes=group.pk)
        first = Case(
            *(When(status=status, then=Value(number)) for number, status in enumerate(_HOLD_UP)),
            default=Value(len(_HOLD_UP)),
            output_field=IntegerField(),
        )
        shown = list(rows.annotate(first=first).order_by("first", "place")[:SHOWN])
        if self._job.owes == group.pk and self._job not in shown:
            shown[-1] = self._job
        node.children += [child for one in inner[:SHOWN] if (child := self._add_group(one))]
        node.children += [child for _, child in self._add(shown)]
        known = sum(counts.values())
        total = known + len(inner)
        node.name = gettext("chord of %(count)s") % {"count": number(max(total, group.size or 0))}
        parts = [f"{number(counts[status])} × {status.label}" for status in Status if counts.get(status)]
        if inner:
            chords = ngettext("%(count)s open chord", "%(count)s open chords", len(inner))
            parts.append(chords % {"count": number(len(inner))})
        waits = sum(counts.get(status, 0) for status in OPEN) + len(inner)
        lead = ""
        if group.state == GroupState.OPEN:
            lead = gettext("nothing is left; the next sweep decides it")
            if waits:
                lead = ngettext("waits for %(count)s", "waits for %(count)s", waits) % {"count": number(waits)}
        node.note = "; ".join(filter(None, [lead, ", ".join(parts), node.note]))
        if total > len(node.children):
            node.children.append(_more(more(total - len(node.children)), group.pk))

    def _below_jobs(self, jobs: list[tuple[Job, Node]]) -> None:
        nodes = {job.pk: node for job, node in jobs}
        if not nodes:
            return
        started = JobGroup.objects.using(self._using).filter(parent_id__in=list(nodes), owes__isnull=True)
        groups = list(started.order_by("created_at")[:BREADTH])
        for group in groups:
            node = self._add_group(group)
            if node is not None and group.parent_id is not None:
                nodes[group.parent_id].children.append(node)
        children = _rows(self._using).filter(parent_id__in=list(nodes)).exclude(owes__in=[group.pk for group in groups])
        found = list(children.order_by("created_at", "pk")[: BREADTH + 1])
        cut = set()
        for row, child in self._add(found[:BREADTH]):
            parent = nodes[row.parent_id]
            if len(parent.children) < SHOWN:
                parent.children.append(child)
            else:
                cut.add(row.parent_id)
        if len(found) > BREADTH:
            cut.add(found[-1].parent_id)
        for parent_id in cut:
            nodes[parent_id].children.append(_more(gettext("and more")))
        unfinished = [job.pk for job, _ in jobs if job.status in (Status.WAITING, Status.RUNNING)]
        messages = Job.objects.using(self._using).filter(pk__in=unfinished)
        for job in messages.only("payload", "content_type", "content_encoding", "envelope"):
            nodes[job.pk].children.extend(self._to_follow(job))

    def _to_follow(self, job: Job) -> list[Node]:
        """The steps that are in the message of an unfinished job."""
        links, chain = to_follow(job, READ_BYTES)  # none where the page says of its arguments that they can't be read
        return [_planned(_task_name(step)) for step in (*links, *chain)[:SHOWN]]

    def _add(self, rows: list[Any]) -> Iterator[tuple[Any, Node]]:
        """A node for each row that is not shown yet; for the body of a group that of its group."""
        groups = JobGroup.objects.using(self._using).filter(body_id__in=[row.pk for row in rows])
        bodies = {group.body_id: group for group in groups}
        for row in rows:
            node = self._add_group(bodies[row.pk]) if row.pk in bodies else self._add_job(row)
            if node is not None:
                yield row, node

    def _by_id(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Any]:
        return {row.pk: row for row in _rows(self._using).filter(pk__in=list(ids))}


def _steps(group: JobGroup) -> list[tuple[str, uuid.UUID | None]]:
    """The tasks to which a group's body leads, and the ids of their rows; none where it can't be read."""
    try:
        body = result_text.decode(group.body)
        return [(_task_name(step), debts.task_id_of(step)) for step in debts.jobs_of(body)]
    except Exception:  # of any codec that the project accepts
        return []


def _task_name(step: Mapping[str, Any]) -> str:
    return clean(str(step.get("task") or ""), 255)


def more(count: int) -> str:
    return ngettext("%(count)s more", "%(count)s more", count) % {"count": number(count)}


def _more(words: str, group_id: uuid.UUID | None = None) -> Node:
    """What is left out."""
    return Node(words, "more", "", group_id=group_id)


def _planned(name: str, group: JobGroup | None = None) -> Node:
    ended = group is not None and group.state != GroupState.OPEN
    note = gettext("pruned, or never written") if ended else gettext("not written yet")
    return Node(name, "planned", gettext("no row"), note=note)
