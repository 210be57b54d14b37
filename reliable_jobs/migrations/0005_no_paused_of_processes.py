from __future__ import annotations

from django.db import migrations

from reliable_jobs.migrations._patience import RemoveField


class Migration(migrations.Migration):
    """Nothing ever wrote it: which queues are paused is told by ``Pause``."""

    #: See _patience.py.
    atomic = False

    dependencies = [("reliable_jobs", "0004_acts_and_pauses")]

    operations = [RemoveField("processseen", "paused")]
