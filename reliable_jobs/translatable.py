"""English sentences that the admin shows in the reader's language.

What is logged, stored or printed by a command is English, in every process. So what is said far from the admin is not
translated where it is said, but where it is shown.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from django.utils.translation import gettext, gettext_noop

from reliable_jobs.status import Status

# Sentences that rows keep: what people did, and what followed from it. Rows hold the text alone, so shown() knows them
# again by it; rows with the wording of an earlier release are shown as they are.
CANCELLED_BY = gettext_noop("cancelled by %(actor)s")
EARLIER_CANCELLED = gettext_noop("an earlier step, job %(id)s, was cancelled")
EARLIER_FAILED = gettext_noop("an earlier step, job %(id)s, failed: %(error)s")
WORKFLOW_CANCELLED = gettext_noop("the workflow %(id)s was cancelled")
WAS = gettext_noop("was %(status)s")
WAS_ELSEWHERE = gettext_noop("was %(status)s, to queue %(queue)s")
COPY_OF = gettext_noop("of job %(id)s, with other arguments")
COPIED_AS = gettext_noop("run again with other arguments, as job %(id)s")
STOP_ASKED = gettext_noop("asked the workers")
STOPPED_BY = gettext_noop("stopped by %(actor)s")
NO_USER = gettext_noop("stopped: the user %(actor)s no longer exists")
NOT_ACTIVE = gettext_noop("stopped: the user %(actor)s was deactivated")
MAY_NOT = gettext_noop("stopped: the user %(actor)s may no longer %(verb)s jobs")
#: The more definite ones first: "was failed" begins as "was failed, to queue slow" does.
STORED = (
    *(CANCELLED_BY, EARLIER_CANCELLED, EARLIER_FAILED, WORKFLOW_CANCELLED, WAS_ELSEWHERE, WAS, COPY_OF, COPIED_AS),
    *(STOP_ASKED, STOPPED_BY, NO_USER, NOT_ACTIVE, MAY_NOT),
)


class Translatable(str):
    """An English sentence, filled in. To everything but the admin it is that text.

    Args:
        template: the sentence with named placeholders, ``%(name)s``; marked by ``gettext_noop`` where it is written.
        values: of the placeholders. A member of one of Django's ``Choices`` is shown by its label.

    >>> from django.utils.translation import gettext_noop
    >>> Translatable(gettext_noop("key '%(key)s' is in use"), key="order-17")
    "key 'order-17' is in use"
    """

    template: str
    values: dict[str, Any]

    def __new__(cls, template: str, **values: Any) -> Translatable:
        self = super().__new__(cls, template % values if values else template)
        self.template, self.values = template, values
        return self


def shown(text: str) -> str:
    """A sentence in the language that is active: a :class:`Translatable`, or one of :data:`STORED` as a row has it. Any
    other text as it is."""
    sentence = text if isinstance(text, Translatable) else _known(text)
    if sentence is None:
        return text
    translated = gettext(sentence.template)
    values = {name: getattr(value, "label", value) for name, value in sentence.values.items()}
    return translated % values if values else translated


def _known(text: str) -> Translatable | None:
    for pattern, template in _patterns():
        if found := pattern.fullmatch(text):
            values: dict[str, Any] = found.groupdict()
            if values.get("status") in Status:
                values["status"] = Status(values["status"])
            return Translatable(template, **values)
    return None


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(re.sub(r"%\\\((\w+)\\\)s", r"(?P<\1>.+?)", re.escape(template)), re.DOTALL), template)
        for template in STORED
    ]
