"""Jobs per second through two worker processes whose results are kept: each job one INSERT."""

from __future__ import annotations

from benchmarks import work
from benchmarks.harness import Benchmark, Contender

BENCHMARK = Benchmark(
    about="as 'work', with results kept: in django-celery-results, in the job's row, or in both",
    contenders=(
        Contender("Celery, kept, django-db", "celery:KeptCeleryResults"),
        Contender("ReliableTask, django-db", "reliable:KeepsResults"),
        Contender("ReliableTask, ledger", "reliable:Ledger"),
        Contender("ReliableTask, results ignored", "reliable:OnCommit"),
    ),
    measure=work.measure,
    normal={"jobs": 4000, "slow": 1500},
    quick={"jobs": 800, "slow": 300},
    baseline="Celery, kept, django-db",
)
