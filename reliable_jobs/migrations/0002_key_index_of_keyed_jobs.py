from __future__ import annotations

from django.db import migrations

from reliable_jobs.models import UniqueWhereGiven


class Migration(migrations.Migration):
    """The new index is made before the old one goes: at no time may a key be given twice. Making it reads the table
    once, and writes to it wait meanwhile."""

    dependencies = [("reliable_jobs", "0001_initial")]

    operations = [
        migrations.AddConstraint(
            model_name="job", constraint=UniqueWhereGiven(fields=["task", "live_key"], name="reliable_job_live_key")
        ),
        migrations.RemoveConstraint(model_name="job", name="reliable_job_key"),
    ]
