from __future__ import annotations

from django.db import migrations

from reliable_jobs.migrations._patience import RemoveConstraint


class Migration(migrations.Migration):
    dependencies = [("reliable_jobs", "0002_index_of_given_keys")]

    operations = [RemoveConstraint("job", "reliable_job_key")]
