from __future__ import annotations

import json
from collections import Counter
from typing import Any

from django.core.management.base import CommandError, CommandParser

from reliable_jobs.health import Finding, Severity, doctor
from reliable_jobs.management.base import JobCommand


class Command(JobCommand):
    help = (
        "Look for what is wrong: configuration, broker, who consumes which queue, database settings and clocks, dead "
        "rows, sweeper, jobs that wait too long, and rows that the pruner leaves. Says how to fix each finding. Exit "
        "status 1 when there is an error (see --fail-level)."
    )
    # It reports them itself, with the rest.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="One JSON object instead of text.")
        parser.add_argument(
            "--fail-level",
            choices=["warning", "error", "never"],
            default="error",
            help="The least severity for which the exit status is 1; error when omitted.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        found = doctor.examine(self.databases(options))
        found.sort(key=lambda finding: -finding.severity)
        counts = Counter(finding.severity for finding in found)
        if options["json"]:
            report = {
                "errors": counts[Severity.ERROR],
                "warnings": counts[Severity.WARNING],
                "findings": [finding.as_json() for finding in found],
            }
            self.stdout.write(json.dumps(report))
        else:
            for finding in found:
                self._write(finding)
        bad = counts[Severity.ERROR] + (counts[Severity.WARNING] if options["fail_level"] == "warning" else 0)
        summary = f"{counts[Severity.ERROR]} error(s), {counts[Severity.WARNING]} warning(s)."
        if bad and options["fail_level"] != "never":
            raise CommandError(summary, returncode=1)
        if not options["json"]:
            self.stdout.write(summary)

    def _write(self, finding: Finding) -> None:
        styles = {Severity.ERROR: self.style.ERROR, Severity.WARNING: self.style.WARNING}
        word = styles.get(finding.severity, str)(f"{finding.severity!s:<8}")
        id_ = f" ({finding.id})" if finding.id else ""
        self.stdout.write(f"{word} {finding.area}: {finding.says}{id_}")
        if finding.fix:
            self.stdout.write(f"         Fix: {finding.fix}")
