from __future__ import annotations

from django.db import migrations, models
from django.db.models import Q

from reliable_jobs.migrations._patience import AddIndex, RemoveIndex


class Migration(migrations.Migration):
    """One index in place of three: each makes every statement on the table longer to plan."""

    #: See _patience.py.
    atomic = False

    dependencies = [("reliable_jobs", "0006_names_for_people")]

    operations = [
        AddIndex(
            "job",
            models.Index(
                fields=["created_at"],
                name="reliable_job_unusual",
                condition=Q(requeues__gt=0) | Q(crashes__gt=0) | Q(reason="parked"),
            ),
        ),
        RemoveIndex("job", "reliable_job_requeued"),
        RemoveIndex("job", "reliable_job_crashed"),
        RemoveIndex("job", "reliable_job_parked"),
    ]
