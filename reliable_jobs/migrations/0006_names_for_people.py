from __future__ import annotations

import django.db.models.functions.datetime
from django.db import migrations, models

PERMISSIONS = (
    ("requeue_job", "Can requeue jobs"),
    ("cancel_job", "Can cancel jobs"),
    ("rerun_job", "Can run jobs again with other arguments"),
    ("stop_job", "Can stop running jobs"),
    ("pause_job", "Can pause and resume queues and tasks"),
)
#: As Django makes them of the classes' names: now they are written down, for translators.
NAMES = {
    "bulkact": "bulk act",
    "cancelledworkflow": "cancelled workflow",
    "job": "job",
    "jobevent": "job event",
    "jobgroup": "job group",
    "jobstate": "job state",
    "pause": "pause",
    "processseen": "process seen",
    "queuestat": "queue stat",
    "savedgroup": "saved group",
    "stat": "stat",
    "statstate": "stat state",
}


class Migration(migrations.Migration):
    """Names only: no statement touches a table."""

    dependencies = [("reliable_jobs", "0005_no_paused_of_processes")]

    operations = [
        *(
            migrations.AlterModelOptions(
                name=model,
                options={"verbose_name": name, "verbose_name_plural": f"{name}s"}
                | ({"permissions": PERMISSIONS} if model == "job" else {}),
            )
            for model, name in NAMES.items()
        ),
        migrations.AlterField("bulkact", "actor", models.CharField("by whom", max_length=255)),
        migrations.AlterField(
            "bulkact",
            "cutoff",
            models.DateTimeField("asked for at", db_default=django.db.models.functions.datetime.Now()),
        ),
        migrations.AlterField("bulkact", "done", models.PositiveIntegerField("done", default=0)),
        migrations.AlterField("bulkact", "skipped", models.PositiveIntegerField("skipped", default=0)),
        migrations.AlterField(
            "bulkact",
            "state",
            models.CharField(
                "state",
                choices=[("running", "running"), ("done", "done"), ("stopped", "stopped")],
                default="running",
                max_length=10,
            ),
        ),
        migrations.AlterField(
            "bulkact",
            "verb",
            models.CharField("what is done", choices=[("requeue", "requeue"), ("cancel", "cancel")], max_length=10),
        ),
        migrations.AlterField("job", "queue", models.CharField("queue", max_length=255)),
        migrations.AlterField("pause", "actor", models.CharField("by whom", blank=True, default="", max_length=255)),
        migrations.AlterField(
            "pause", "at", models.DateTimeField("since", db_default=django.db.models.functions.datetime.Now())
        ),
        migrations.AlterField(
            "pause", "kind", models.CharField("kind", choices=[("queue", "queue"), ("task", "task")], max_length=5)
        ),
        migrations.AlterField("pause", "name", models.CharField("name", max_length=255)),
        migrations.AlterField("pause", "why", models.TextField("why", blank=True, default="")),
    ]
