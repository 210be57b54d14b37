"""Workflows of every kind, for the tests that kill their worker: each with what its jobs leave behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from celery import chain, chord, group

from tests.testapp import tasks

#: They are called with what failed; all other tasks take a name only.
ERRBACKS = (tasks.errback_by_id, tasks.errback_with_all)


@dataclasses.dataclass(frozen=True)
class Workflow:
    #: Makes it. Its tasks are made by name: the last part of their effect's.
    make: Callable[[Callable[..., Any]], Any]
    #: Messages, each acknowledged once where nothing is disturbed.
    messages: int
    #: Effects that happen once, by the last parts of their names.
    once: tuple[str, ...]
    #: And those of plain tasks, which may happen again.
    at_least_once: tuple[str, ...] = ()
    #: How its jobs end.
    ends: frozenset[str] = frozenset({"succeeded"})

    def call(self, name: str, queue: str = "") -> None:
        """Call it.

        Args:
            name: its effects' names begin with it.
            queue: of its tasks; called as the workflow by default.
        """

        def one(end: str, task: Any = tasks.effect) -> Any:
            signature = task.s if task in ERRBACKS else task.si
            return signature(name=f"{name}-{end}").set(queue=queue or name)

        self.make(one).apply_async()


def _numbers(last: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(1, last + 1))


def _links(one: Callable[..., Any]) -> Any:
    parent = one("1")
    parent.link(one("link"))
    parent.link(one("plain-link", tasks.plain_effect))
    parent.link(group(one("group"), one("plain-group", tasks.plain_effect)))
    parent.link(one("chain-1") | one("chain-2"))
    parent.link(chord([one("part-1"), one("part-2")], one("body")))
    return parent


def _errbacks(one: Callable[..., Any]) -> Any:
    broken = one("never", tasks.fails)
    broken.link_error(one("id", tasks.errback_by_id))
    broken.link_error(one("all", tasks.errback_with_all))
    body = one("body").on_error(one("body-id", tasks.errback_by_id))
    return chord([one("1"), broken | one("later")], body)


WORKFLOWS = {
    "chain of five": Workflow(lambda one: chain(*map(one, _numbers(5))), 5, _numbers(5)),
    "chain, group, task": Workflow(lambda one: one("1") | group(one("2"), one("3")) | one("4"), 4, _numbers(4)),
    "chord": Workflow(lambda one: chord([one("1"), one("2")], one("3")), 3, _numbers(3)),
    "chords, three deep": Workflow(
        lambda one: chord([chord([chord([one("1"), one("2")], one("3")), one("4")], one("5")), one("6")], one("7")),
        7,
        _numbers(7),
    ),
    "mixed chord": Workflow(
        lambda one: chord([one("1"), one("plain", tasks.plain_effect)], one("2")),
        3,
        _numbers(2),
        ("plain",),
    ),
    "group as the body": Workflow(lambda one: chord([one("1"), one("2")], group(one("3"), one("4"))), 4, _numbers(4)),
    "replace by a chord, in a part": Workflow(
        lambda one: chord([one("1", tasks.becomes_a_chord), one("2")], one("3")),
        6,
        ("1", "1-a", "1-b", "1-c", "2", "3"),
    ),
    "links": Workflow(
        _links,
        10,
        ("1", "link", "group", "chain-1", "chain-2", "part-1", "part-2", "body"),
        ("plain-link", "plain-group"),
        frozenset({"succeeded", "sent"}),
    ),
    "errbacks": Workflow(_errbacks, 5, ("1", "id", "all", "body-id"), ends=frozenset({"succeeded", "failed"})),
}
