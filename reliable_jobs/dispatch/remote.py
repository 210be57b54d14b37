"""What a person asks of the workers over the broker: to stop runs."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable

from celery import Celery

from reliable_jobs.dispatch.answers import BrokerTimeout

#: Seconds that a request spends on it.
TIMEOUT = 2.0


def terminate(app: Celery, job_ids: Iterable[uuid.UUID], *, signal: str = "SIGTERM", timeout: float = TIMEOUT) -> None:
    """Have the workers that run these jobs end the processes that do, as ``app.control.revoke(terminate=True)``.

    Of Celery's pools only prefork can; under the others the run goes on. A terminated job ends ``cancelled``.

    Args:
        signal: the name of the signal that the process gets.
        timeout: seconds.

    Raises:
        BrokerTimeout: the broker did not take the request in time. It may have it all the same.
        Exception: of the connection.
    """
    names = [str(job_id) for job_id in job_ids]
    errors: list[Exception] = []

    def ask() -> None:
        try:
            # A connection of its own: one of the pool's may be broken, or be waited for.
            with app.connection_for_write(connect_timeout=timeout) as connection:
                app.control.revoke(names, terminate=True, signal=signal, connection=connection)
        except Exception as error:  # whatever it is, the caller raises it
            errors.append(error)

    # A thread, because nothing else bounds it: name resolution and a handshake know no timeout.
    thread = threading.Thread(target=ask, name="reliable_jobs-terminate", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise BrokerTimeout("The broker did not take the request in time. Look at the broker, and ask again.")
    if errors:
        raise errors[0]
