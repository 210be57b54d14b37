"""awa-pg: the engine is Rust; here only its COPY ingestion, the fastest bulk enqueue of them all."""

from __future__ import annotations

import dataclasses
import os
from typing import ClassVar

import awa

from benchmarks.rivals import Rival


@dataclasses.dataclass
class Effect:
    number: int


class AwaCopy(Rival):
    """``enqueue_many_copy``: one call, one transaction of its own."""

    distributions: ClassVar[tuple[str, ...]] = ("awa-pg",)
    stored = "SELECT count(*) FROM awa.jobs"

    def install(self) -> None:
        client = awa.Client(os.environ["DATABASE_URL"])
        client.migrate()
        client.install_queue_storage()  # which its first worker would do

    def bulk(self, count: int) -> None:
        awa.Client(os.environ["DATABASE_URL"]).enqueue_many_copy([Effect(number) for number in range(count)])
