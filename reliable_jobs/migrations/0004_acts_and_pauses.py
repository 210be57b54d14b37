from __future__ import annotations

import uuid

import django.db.models.functions.datetime
from django.db import migrations, models
from django.db.models import Q

from reliable_jobs.migrations._patience import AddFields, AddIndex, RemoveIndex


class Migration(migrations.Migration):
    #: See _patience.py.
    atomic = False

    dependencies = [("reliable_jobs", "0003_presence_and_statistics")]

    operations = [
        migrations.CreateModel(
            name="BulkAct",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "verb",
                    models.CharField(choices=[("requeue", "requeue"), ("cancel", "cancel")], max_length=10),
                ),
                ("selection", models.TextField()),
                ("queue", models.CharField(blank=True, default="", max_length=255)),
                ("rate", models.FloatField(blank=True, null=True)),
                ("actor", models.CharField(max_length=255)),
                ("user_id", models.CharField(blank=True, default="", max_length=255)),
                (
                    "state",
                    models.CharField(
                        choices=[("running", "running"), ("done", "done"), ("stopped", "stopped")],
                        default="running",
                        max_length=10,
                    ),
                ),
                ("note", models.TextField(blank=True, default="")),
                ("expected", models.PositiveIntegerField(blank=True, null=True)),
                ("done", models.PositiveIntegerField(default=0)),
                ("skipped", models.PositiveIntegerField(default=0)),
                ("cutoff", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("cursor_at", models.DateTimeField(blank=True, null=True)),
                ("cursor_id", models.UUIDField(blank=True, null=True)),
                ("stepped_at", models.DateTimeField(blank=True, null=True)),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "verbose_name": "bulk act",
                "indexes": [
                    models.Index(condition=Q(("state", "running")), fields=["cutoff"], name="reliable_act_running"),
                    models.Index(fields=["cutoff"], name="reliable_act_cutoff"),
                ],
            },
        ),
        migrations.CreateModel(
            name="Pause",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("kind", models.CharField(choices=[("queue", "queue"), ("task", "task")], max_length=5)),
                ("name", models.CharField(max_length=255)),
                ("actor", models.CharField(blank=True, default="", max_length=255)),
                ("why", models.TextField(blank=True, default="")),
                ("at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("kind", "name"), name="reliable_pause_of")],
            },
        ),
        migrations.AlterModelOptions(
            name="job",
            options={
                "permissions": (
                    ("requeue_job", "Can requeue jobs"),
                    ("cancel_job", "Can cancel jobs"),
                    ("rerun_job", "Can run jobs again with other arguments"),
                    ("stop_job", "Can stop running jobs"),
                    ("pause_job", "Can pause and resume queues and tasks"),
                )
            },
        ),
        AddFields("jobevent", {"act_id": models.UUIDField(blank=True, null=True)}),
        AddIndex(
            "jobevent",
            models.Index(fields=["act_id"], name="reliable_job_event_act", condition=Q(act_id__isnull=False)),
        ),
        AddFields("job", {"paused_at": models.DateTimeField(blank=True, null=True)}),
        AddIndex(
            "job",
            models.Index(
                fields=["task"], name="reliable_job_paused", condition=Q(status="waiting", paused_at__isnull=False)
            ),
        ),
        AddIndex(
            "job",
            models.Index(
                fields=["key"],
                name="reliable_job_key_prefix",
                condition=Q(key__isnull=False),
                opclasses=["varchar_pattern_ops"],
            ),
        ),
        RemoveIndex("job", "reliable_job_by_key"),
        # The names that this column may hold; nothing changes in the database.
        migrations.AlterField("jobevent", "kind", models.CharField(choices=[('failure', 'failure'), ('crash', 'crash'), ('time limit', 'hard time limit'), ('interruption', 'interruption'), ('rescue', 'rescue'), ('requeue', 'requeue'), ('cancel', 'cancel'), ('expiry', 'expiry'), ('parked', 'parked'), ('unroutable', 'unroutable'), ('copy', 'run with other arguments'), ('stop', 'stop asked for')], max_length=20)),
    ]
