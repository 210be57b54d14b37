from __future__ import annotations

from django.db import migrations

from reliable_jobs.migrations._patience import AddConstraint
from reliable_jobs.models import UniqueWhereGiven


class Migration(migrations.Migration):
    """Making the index reads the table once, and writes to it wait meanwhile. The old one goes with 0003: at no time may
    a key be given twice."""

    dependencies = [("reliable_jobs", "0001_initial")]

    operations = [
        AddConstraint("job", UniqueWhereGiven(fields=["task", "live_key"], name="reliable_job_live_key")),
    ]
