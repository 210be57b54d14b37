"""What is wrong with a site, for the doctor, ``reliable_jobs_status --fail-if`` and health views.

Enters: the site's settings, its databases, its broker. Leaves: findings, each with how to fix it.
Never here: a change of anything; a question to the broker within a request.
`finding.py` has what a finding is, and `doctor.py` the order in which they are looked for: read it first.
"""

from __future__ import annotations

from reliable_jobs.health.finding import Finding, Severity

__all__ = ["Finding", "Severity"]
