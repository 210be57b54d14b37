"""What the system checks say, those for production and those that ask the databases included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from django.core import checks

from reliable_jobs.checks.celery_settings import TAG
from reliable_jobs.health.finding import Finding, Severity


def findings(aliases: Sequence[str]) -> Iterator[Finding]:
    """
    Args:
        aliases: databases that may be asked.
    """
    messages = checks.run_checks(
        tags=[TAG, checks.Tags.database], include_deployment_checks=True, databases=list(aliases)
    )
    for message in messages:
        id_ = message.id or ""
        if id_.startswith("reliable_jobs.") and not message.is_silenced():
            yield Finding(_severity(message.level), "configuration", str(message.msg), str(message.hint or ""), id_)


def _severity(level: int) -> Severity:
    if level >= checks.ERROR:
        return Severity.ERROR
    return Severity.WARNING if level >= checks.WARNING else Severity.INFO
