from __future__ import annotations

from django.db import migrations, models
from django.db.models import Q

from reliable_jobs.migrations._patience import AddFields, AddIndex, RemoveIndex


def _name(length: int) -> models.CharField[str, str]:
    return models.CharField(blank=True, db_default="", default="", max_length=length)


class Migration(migrations.Migration):
    #: See _patience.py.
    atomic = False

    dependencies = [("reliable_jobs", "0001_initial")]

    operations = [
        AddFields(
            "job",
            {
                "run_started_at": models.DateTimeField(blank=True, null=True),
                "release": _name(200),
                "error_class": _name(255),
            },
        ),
        AddFields(
            "jobevent",
            {
                "task": _name(255),
                "queue": _name(255),
                "error_class": _name(255),
                "release": _name(200),
                "final": models.BooleanField(blank=True, null=True),
            },
        ),
        # Before reliable_job_due goes: at each moment a sweep has one of the two.
        AddIndex(
            "job",
            models.Index(
                fields=["queue", "due_at"], name="reliable_job_unsent", condition=Q(status="waiting", sends=0)
            ),
        ),
        AddIndex(
            "job", models.Index(fields=["queue", "due_at"], name="reliable_job_depth", condition=Q(status="waiting"))
        ),
        AddIndex(
            "job",
            models.Index(
                fields=["finished_at", "task", "error_class", "release"],
                name="reliable_job_failed",
                condition=Q(status="failed"),
            ),
        ),
        AddIndex(
            "job",
            models.Index(
                fields=["task", "error_class"],
                name="reliable_job_retrying",
                condition=Q(status="waiting", reason="error"),
            ),
        ),
        RemoveIndex("job", "reliable_job_due"),
        RemoveIndex("job", "reliable_job_status"),
    ]
