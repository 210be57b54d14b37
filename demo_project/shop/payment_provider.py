"""The payment provider: another company, played by an append-only file.

Like the real ones it takes an idempotency key, and answers the same key with the same charge. Now and then it refuses.
"""

from __future__ import annotations

import os
import time
import uuid
from decimal import Decimal

from django.conf import settings


class ProviderUnavailable(Exception):
    """The provider says: try again later."""


def charge(order_id: uuid.UUID, amount: Decimal, *, idempotency_key: str) -> str:
    """Charge the customer and return the charge's id: the same one for the same key.

    Raises:
        ProviderUnavailable: nothing was charged.
    """
    _log("asked", order_id, idempotency_key, amount)
    time.sleep(settings.PAYMENT_SECONDS)
    if _refuses(idempotency_key):
        _log("refused", order_id, idempotency_key, amount)
        raise ProviderUnavailable("503, try again later")
    _log("charged", order_id, idempotency_key, amount)
    return str(uuid.uuid5(uuid.NAMESPACE_URL, idempotency_key))


def _refuses(key: str) -> bool:
    """The first request of every twelfth key or so."""
    if uuid.UUID(key).int % settings.PAYMENT_REFUSES_ONE_IN:
        return False
    try:
        (settings.OUTSIDE_DIR / "refused" / key).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _log(*words: object) -> None:
    line = " ".join(map(str, (os.getpid(), *words))) + "\n"
    descriptor = os.open(settings.OUTSIDE_DIR / "provider.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
