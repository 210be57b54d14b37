"""What the broker has answered: of a batch of messages, of a queue, or nothing in time."""

from __future__ import annotations

import dataclasses
import struct
import uuid
from collections.abc import Mapping, Sequence

from amqp.exceptions import FrameSyntaxError

#: What py-amqp raises for a header or property that AMQP has no type for.
UNENCODABLE = (FrameSyntaxError, struct.error, TypeError, ValueError, OverflowError)


class BrokerTimeout(Exception):
    """The broker did not answer within the time budget."""


@dataclasses.dataclass
class Confirms:
    """What became of a batch. A job in none of the three is *unknown*: it may or may not have arrived."""

    confirmed: set[uuid.UUID] = dataclasses.field(default_factory=set)
    #: Unroutable, with the broker's words.
    returned: dict[uuid.UUID, str] = dataclasses.field(default_factory=dict)
    nacked: set[uuid.UUID] = dataclasses.field(default_factory=set)
    #: Why the batch was cut short, if it was.
    error: Exception | None = None
    #: The message that could not be encoded for the wire, or whose queue could not be declared, where that was why.
    unsendable: uuid.UUID | None = None
    tries: int = 1
    #: The connection ended while it published, and not because the broker was going down.
    died: bool = False

    def worth_another_try(self, job_id: uuid.UUID) -> bool:
        """Whether a message is neither confirmed nor given up. The first return counts as a queue that was deleted
        behind a kept connection: another one declares it anew."""
        return job_id not in self.confirmed and (self.tries == 1 or job_id not in self.returned)

    def given_up(self) -> dict[uuid.UUID, str]:
        """What no further try will take."""
        gone = dict(self.returned) if self.tries > 1 else {}
        if self.unsendable is not None:
            encoded = not isinstance(self.error, UNENCODABLE)
            why = "the broker refuses its queue" if encoded else "can't be encoded for the broker"
            gone[self.unsendable] = f"{why}: {self.error!r}"
        return gone

    def unpack(self, bundles: Mapping[uuid.UUID, Sequence[uuid.UUID]]) -> None:
        """Say of each job in a bundle what became of the bundle."""
        for bundle_id, job_ids in bundles.items():
            for some in (self.confirmed, self.nacked):
                if bundle_id in some:
                    some.remove(bundle_id)
                    some.update(job_ids)
            if bundle_id in self.returned:
                self.returned.update(dict.fromkeys(job_ids, self.returned.pop(bundle_id)))


@dataclasses.dataclass(frozen=True)
class Depth:
    """Of a queue. Messages that a consumer has prefetched are not counted as ready."""

    ready: int
    consumers: int
    #: Whether there is a queue of that name. (Where an exchange routes, the name may be a routing key.)
    exists: bool = True

    @property
    def abandoned(self) -> bool:
        """Messages wait and nobody consumes them. (An empty queue without a consumer has lost its messages: more must
        be sent, not least because some sites start their workers when they see one.)"""
        return self.ready > 0 and self.consumers == 0


def is_refusal(error: Exception | None) -> bool:
    """Whether the broker closed the channel over one message: AMQP's soft errors."""
    return getattr(error, "code", None) in (311, 403, 404, 405, 406)
