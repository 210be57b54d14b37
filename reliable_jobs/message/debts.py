"""Which group a message's row owes, read from what Celery's canvas put into the message.

A task of a chord's header bears the body and the group's id; of a chain only the last step does, of a chord its body,
of a group each of its tasks. The group's id alone says nothing: bodies bear it too.

A message need not carry the body, which is in the group's row: a stub stands for it, so that ``request.chord`` is still
there for ``add_to_chord()`` and ``replace()``.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from reliable_jobs.errors import InvalidOption
from reliable_jobs.message.row_to_message import Debt, as_uuid, foreign_id

#: Marks a stub, and says that the group has a row.
STUB = "reliable_jobs_stub"


def of_message(headers: Mapping[str, Any], embed: Mapping[str, Any]) -> Debt | None:
    """
    Args:
        headers: Celery's.
        embed: what is to follow, from the message's body: its ``chain`` has the last step first.

    Raises:
        InvalidOption: the id of the group is not a UUID.
    """
    chain = embed.get("chain")
    last = of_signature(chain[0]) if chain else None
    return last or _debt(embed.get("chord"), headers.get("group"))


def of_signature(signature: Mapping[str, Any]) -> Debt | None:
    """The group that waits for what a frozen signature leads to.

    Raises:
        InvalidOption: as :func:`of_message`.
    """
    options = signature.get("options") or {}
    chain = options.get("chain")
    if chain:
        return of_signature(chain[0])
    inside = signature.get("kwargs") or {}
    kind = signature.get("subtask_type")
    if kind == "group" and inside.get("tasks"):
        # Its own options won't do: as a chord's body, it bears the id of that chord's header.
        return of_signature(inside["tasks"][0])
    found = _debt(options.get("chord"), options.get("group_id"))
    if found is not None:
        return found
    if kind == "chord" and inside.get("body"):
        return of_signature(inside["body"])
    if kind == "chain" and inside.get("tasks"):
        return of_signature(inside["tasks"][-1])
    return None


def _debt(body: Any, group_id: Any) -> Debt | None:
    if not body or group_id is None:
        return None
    known = as_uuid(group_id)
    if known is None:
        raise InvalidOption(f"The group id {group_id!r} of a chord must be a UUID: leave task_id out of the group.")
    return Debt(known, body)


def is_stub(body: Mapping[str, Any]) -> bool:
    return bool(body.get(STUB))


def stub(body: Mapping[str, Any]) -> dict[str, Any]:
    """What stands for a body in the messages of its group's parts: a signature without arguments."""
    return {
        "task": body.get("task"),
        "args": [],
        "kwargs": {},
        "options": {"task_id": result_id(body)},
        "subtask_type": None,
        "immutable": False,
        STUB: True,
    }


def without_body(embed: Mapping[str, Any], in_place: dict[str, Any]) -> dict[str, Any]:
    """What is to follow, with a stub in place of the body of the group that the message owes."""
    cut = dict(embed)
    if cut.get("chord"):
        cut["chord"] = in_place
    if cut.get("chain"):
        cut["chain"] = [signature_without(cut["chain"][0], in_place), *cut["chain"][1:]]
    return cut


def signature_without(signature: Mapping[str, Any], in_place: dict[str, Any]) -> dict[str, Any]:
    """A signature with a stub in place of the body, wherever :func:`of_signature` looks for it."""
    copied = dict(signature)
    options = copied["options"] = dict(copied.get("options") or {})
    if options.get("chord"):
        options["chord"] = in_place
    if options.get("chain"):
        options["chain"] = [signature_without(options["chain"][0], in_place), *options["chain"][1:]]
    inside = copied["kwargs"] = dict(copied.get("kwargs") or {})
    kind = copied.get("subtask_type")
    if kind == "chord" and inside.get("body"):
        inside["body"] = signature_without(inside["body"], in_place)
    elif kind == "group":
        inside["tasks"] = [signature_without(task, in_place) for task in inside.get("tasks") or ()]
    elif kind == "chain" and inside.get("tasks"):
        *before, last = inside["tasks"]
        inside["tasks"] = [*before, signature_without(last, in_place)]
    return copied


def result_id(signature: Mapping[str, Any]) -> str | None:
    """The id under which the result of a frozen signature is asked for."""
    inside = signature.get("kwargs") or {}
    kind = signature.get("subtask_type")
    if kind == "chord" and inside.get("body"):
        return result_id(inside["body"])
    if kind == "chain" and inside.get("tasks"):
        return result_id(inside["tasks"][-1])
    found = (signature.get("options") or {}).get("task_id")
    return None if found is None else str(found)


def task_id_of(signature: Mapping[str, Any]) -> uuid.UUID | None:
    """The id of the row that a frozen signature of a single task has or will have; None where it is not frozen."""
    found = (signature.get("options") or {}).get("task_id")
    return None if found is None else foreign_id(found)


def jobs_of(signature: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The single tasks of a frozen signature whose results somebody may ask for, first to last: of a chord the body's,
    not the header's; and those chained behind it."""
    inside = signature.get("kwargs") or {}
    kind = signature.get("subtask_type")
    if kind == "chord" and inside.get("body"):
        yield from jobs_of(inside["body"])
    elif kind in ("chain", "group"):
        for task in inside.get("tasks") or ():
            yield from jobs_of(task)
    else:
        yield signature
    for later in reversed((signature.get("options") or {}).get("chain") or ()):
        yield from jobs_of(later)
