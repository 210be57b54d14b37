"""What is compared: the same tests, with other task classes and result backends."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way of running the suite.

    Attributes:
        name: as the command line and the report know it.
        reliable: whether every task of the suite is a reliable one.
        backend: the result backend, as ``CELERY_RESULT_BACKEND`` has it.
    """

    name: str
    reliable: bool
    backend: str


#: The first is what the others are compared with.
KINDS = (
    Kind("plain", False, "redis://"),
    Kind("reliable", True, "redis://"),
    Kind("ledger", True, "reliable_jobs.results:LedgerBackend+redis://"),
)
