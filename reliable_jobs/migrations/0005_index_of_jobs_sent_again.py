from __future__ import annotations

from django.db import migrations, models

from reliable_jobs.migrations._patience import AddIndex


class Migration(migrations.Migration):
    """Few rows at any time: those whose first message was not answered. Making it reads the table once."""

    dependencies = [("reliable_jobs", "0004_autovacuum")]

    operations = [
        AddIndex(
            "job",
            models.Index(
                fields=["queue"],
                name="reliable_job_sent_again",
                condition=models.Q(status="waiting", sends__gt=1),
            ),
        ),
    ]
