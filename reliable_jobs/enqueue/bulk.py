"""The calls of one ``bulk_delay`` as blocks of rows, for COPY.

A block's calls are taken from the caller between two COPYs, its rows made while the server takes in those before them.
A statement in the middle of a COPY would wait for ever, so no code of the caller's, or of a value's own, runs there.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from reliable_jobs.enqueue.insert import Each, random_ids
from reliable_jobs.enqueue.template import Template, plain_copy

#: Calls that are taken from the caller at a time; a COPY is made of each such block.
BLOCK = 10_000


class _Taken(NamedTuple):
    number: int
    #: Arguments that are encoded later; None where they are encoded already.
    plain: tuple[Any, dict[str, Any]] | None
    parts: tuple[bytes, str] | None


class Blocks:
    """Iterates over the blocks, once.

    Args:
        template: the message of the task's calls.
        check: raises TypeError where arguments don't fit the task.
        calls: positional and keyword arguments of each.
    """

    def __init__(self, template: Template, check: Callable[[Any, Any], None], calls: Iterable[tuple[Any, Any]]) -> None:
        self._template, self._check, self._calls = template, check, calls
        self._ids = random_ids()
        self._odd: list[tuple[int, Any]] = []

    def __iter__(self) -> Iterator[Iterable[Each]]:
        taken = self._taken()
        while block := list(itertools.islice(taken, BLOCK)):
            yield self._rows(block)

    def odd(self) -> list[tuple[int, Any]]:
        """Number and arguments of the calls that Celery has to render, in order; complete after the last block."""
        return sorted(self._odd, key=operator.itemgetter(0))

    def _taken(self) -> Iterator[_Taken]:
        """The calls as they are now: the caller may use a list or dict again."""
        for number, (args, kwargs) in enumerate(self._calls):
            self._check(args, kwargs)
            plain = plain_copy(args, kwargs)
            parts = None if plain else self._template.fill_each(args, kwargs)
            if plain or parts:
                yield _Taken(number, plain, parts)
            else:
                self._odd.append((number, (args, kwargs)))

    def _rows(self, block: Iterable[_Taken]) -> Iterator[Each]:
        for number, plain, encoded in block:
            parts = encoded or (self._template.fill_each(*plain) if plain else None)
            if parts:
                yield Each(next(self._ids), *parts)
            else:
                self._odd.append((number, plain))


def arguments_of(task: str, call: Any) -> tuple[Any, dict[str, Any]]:
    """The positional and keyword arguments of one of the calls that ``bulk_delay`` takes."""
    if isinstance(call, dict):
        return (), call
    if isinstance(call, (tuple, list)):
        return call, {}
    raise TypeError(
        f"{task}: bulk_delay takes a tuple or list of arguments, or a dict of keyword arguments, for each job, "
        f"not {call!r}. For one argument write ({call!r},)."
    )
