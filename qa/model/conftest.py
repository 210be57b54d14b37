"""The model's database: migrated once per module, its clock in the model's hands. No broker is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from qa.model import clock
from qa.model.actors import instrumented
from qa.model.place import Place
from tests.support.harness import Stack, server_urls

#: Small bounds, so that few steps reach them. Times are the model's, and pass at its wish.
SETTINGS = {
    "GRACE": 16.0,
    "MAX_GRACE": 600.0,
    "LEASE": 8.0,
    "MAX_CRASHES": 2,
    "MAX_INTERRUPTIONS": 2,
    "HOLD": 1.0,
    "RETENTION": dict.fromkeys(("succeeded", "failed", "cancelled", "expired"), 1),
}


@pytest.fixture(scope="module")
def place(django_db_blocker: Any) -> Iterator[Place]:
    stack = Stack(*server_urls(), **SETTINGS)
    with django_db_blocker.unblock(), stack.active():
        try:
            stack.create()
            with psycopg.connect(stack.database_url, autocommit=True) as connection:
                clock.install(connection)
            place = Place(stack.database_url)
            with instrumented():
                yield place
            place.close()
        finally:
            stack.destroy()
