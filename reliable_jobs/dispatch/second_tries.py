"""A publish's further tries for what the first did not confirm: sends the others, and finds the message at fault."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence

from reliable_jobs.dispatch.answers import BrokerTimeout, Confirms, is_refusal
from reliable_jobs.message.row_to_message import Outgoing

#: Publishes messages on one connection until a deadline (monotonic). The last argument: whether an idle one may be
#: used, or a new one is made.
Try = Callable[[Sequence[Outgoing], float, bool], Confirms]
#: Connections that one publish may lose while it looks for the message that kills them.
MOST_TRIES = 50


def publish(try_once: Try, messages: Sequence[Outgoing], total: Confirms, deadline: float) -> Confirms:
    """Try again as long as another try can help. Returns what became of all the messages.

    Args:
        total: of the first try.
        deadline: for everything (monotonic).
    """
    while left := [message for message in messages if total.worth_another_try(message.id)]:
        again = _again(try_once, left, total, deadline)
        if again is None:
            break
        total = again
    return total


def _again(try_once: Try, left: list[Outgoing], so_far: Confirms, deadline: float) -> Confirms | None:
    """Another try for what is left, where one can help: a kept connection may have died unnoticed, a queue been
    deleted (a new connection declares it anew), one message have spoilt the batch. None when there is no point."""
    error = so_far.error
    exhausted = so_far.tries > 2 + len(so_far.returned) or time.monotonic() >= deadline
    if exhausted or isinstance(error, BrokerTimeout):
        return None
    if so_far.died and so_far.tries > 1:
        return _without_the_guilty(try_once, left, so_far, deadline)
    left = [message for message in left if message.id != so_far.unsendable]
    # A refused message (no such exchange, no permission, a wrong user_id) closes the channel and does not say which
    # one it was: one at a time finds out.
    singly = is_refusal(error)
    batches = [[message] for message in left] if singly else [left]
    total = Confirms(confirmed=so_far.confirmed, returned=so_far.given_up(), tries=so_far.tries + 1)
    for batch in batches:
        confirms = try_once(batch, deadline, singly)
        total.confirmed |= confirms.confirmed
        total.returned |= confirms.returned
        total.nacked |= confirms.nacked
        if singly and is_refusal(confirms.error):
            total.returned[batch[0].id] = f"unroutable: {confirms.error}"
        elif confirms.error is not None:
            total.error, total.unsendable, total.died = confirms.error, confirms.unsendable, confirms.died
            break
    return total


def _without_the_guilty(try_once: Try, left: list[Outgoing], so_far: Confirms, deadline: float) -> Confirms:
    """A second connection has died with these messages, so one of them may be why: RabbitMQ closes the connection
    over a frame that it can't read, and does not say which. Halves, and halves of those, find it; the others are
    sent. One that kills two connections by itself is given up."""
    total = Confirms(confirmed=so_far.confirmed, returned=so_far.given_up(), tries=so_far.tries)
    batches: list[list[Outgoing]] = [left]
    killed_one_alone: uuid.UUID | None = None
    while batches:
        if total.tries > MOST_TRIES:
            total.error = so_far.error
            break
        total.tries += 1
        batch = batches.pop()
        confirms = try_once(batch, deadline, True)
        total.confirmed |= confirms.confirmed
        total.returned |= confirms.returned
        total.nacked |= confirms.nacked
        if confirms.error is None:
            continue
        if not confirms.died:
            total.error, total.unsendable = confirms.error, confirms.unsendable
            break
        rest = [message for message in batch if message.id not in confirms.confirmed]
        if len(rest) > 1:
            half = len(rest) // 2
            batches += [rest[half:], rest[:half]]
        elif rest and killed_one_alone == rest[0].id:
            total.returned[rest[0].id] = f"the broker closes the connection over it: {confirms.error!r}"
        elif rest:
            killed_one_alone = rest[0].id
            batches.append(rest)
    return total
