from __future__ import annotations

import django.db.models.deletion
import django.db.models.functions.datetime
import reliable_jobs.columns
import uuid
from typing import Any

from django.db import migrations, models

#: PostgreSQL's own setting lets a fifth of a table be dead rows before it cleans up, and every job leaves one or two.
#: Measured: docs/performance.md, "Tables that have grown".
AUTOVACUUM = {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_analyze_scale_factor": "0.02",
    "autovacuum_vacuum_cost_delay": "0",
}


def set_autovacuum(apps: Any, schema_editor: Any) -> None:
    _alter(schema_editor, "SET", ", ".join(f"{name} = {value}" for name, value in AUTOVACUUM.items()))


def reset_autovacuum(apps: Any, schema_editor: Any) -> None:
    _alter(schema_editor, "RESET", ", ".join(AUTOVACUUM))


def _alter(schema_editor: Any, verb: str, what: str) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(f"ALTER TABLE IF EXISTS reliable_jobs_job {verb} ({what})")


class Migration(migrations.Migration):

    initial = True

    dependencies = [
    ]

    operations = [
        migrations.CreateModel(
            name='Job',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('task', models.CharField(max_length=255)),
                ('queue', models.CharField(max_length=255)),
                ('priority', models.SmallIntegerField(blank=True, null=True)),
                ('status', models.CharField(choices=[('waiting', 'waiting'), ('running', 'running'), ('succeeded', 'succeeded'), ('failed', 'failed'), ('cancelled', 'cancelled'), ('expired', 'expired'), ('sent', 'sent')], default='waiting', max_length=10)),
                ('reason', models.CharField(blank=True, choices=[('', '-'), ('error', 'error'), ('asked', 'asked to run later'), ('crash', 'crashed'), ('time limit', 'hard time limit'), ('interrupted', 'interrupted'), ('parked', 'parked'), ('rejected', 'rejected'), ('ignored', 'ignored'), ('revoked', 'revoked'), ('requeued', 'requeued'), ('replaced', 'replaced by other tasks'), ('earlier step', 'an earlier step did not succeed'), ('unroutable', 'unroutable')], default='', max_length=12)),
                ('due_at', models.DateTimeField(blank=True, null=True)),
                ('check_at', models.DateTimeField(blank=True, null=True)),
                ('sends', models.PositiveIntegerField(default=0)),
                ('expires_at', models.DateTimeField(blank=True, null=True)),
                ('epoch', models.PositiveIntegerField(default=0)),
                ('content_version', models.PositiveIntegerField(default=0)),
                ('token', models.UUIDField(blank=True, null=True)),
                ('lease_at', models.DateTimeField(blank=True, null=True)),
                ('deadline_at', models.DateTimeField(blank=True, null=True)),
                ('failures', models.PositiveIntegerField(default=0)),
                ('crashes', models.PositiveIntegerField(default=0)),
                ('interruptions', models.PositiveIntegerField(default=0)),
                ('requeues', models.PositiveIntegerField(default=0)),
                ('key', models.CharField(blank=True, max_length=255, null=True)),
                ('live_key', models.CharField(blank=True, editable=False, max_length=255, null=True)),
                ('key_forever', models.BooleanField(default=False)),
                ('payload', models.BinaryField()),
                ('content_type', models.CharField(max_length=127)),
                ('content_encoding', models.CharField(max_length=63)),
                ('envelope', models.TextField()),
                ('root_id', models.UUIDField(blank=True, null=True)),
                ('parent_id', models.UUIDField(blank=True, null=True)),
                ('relay_only', models.BooleanField(db_default=False, default=False)),
                ('errback_of', models.UUIDField(blank=True, null=True)),
                ('owes', models.UUIDField(blank=True, null=True)),
                ('place', models.CharField(blank=True, db_default='', default='', max_length=255)),
                ('result', models.TextField(blank=True, null=True)),
                ('error', models.TextField(blank=True, default='')),
                ('exception', models.TextField(blank=True, null=True)),
                ('subtasks', models.TextField(blank=True, null=True)),
                ('traceback', models.TextField(blank=True, default='')),
                ('worker', models.CharField(blank=True, default='', max_length=255)),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ('started_at', models.DateTimeField(blank=True, null=True)),
                ('finished_at', models.DateTimeField(blank=True, null=True)),
            ],
            options={
                'permissions': (('requeue_job', 'Can requeue jobs'), ('cancel_job', 'Can cancel jobs')),
                'indexes': [models.Index(condition=models.Q(('sends', 0), ('status', 'waiting')), fields=['due_at'], name='reliable_job_due'), models.Index(condition=models.Q(('sends__gt', 0), ('status', 'waiting')), fields=['queue', 'check_at'], name='reliable_job_overdue'), models.Index(condition=models.Q(('sends__gt', 1), ('status', 'waiting')), fields=['queue'], name='reliable_job_sent_again'), models.Index(condition=models.Q(('status', 'running')), fields=['lease_at'], name='reliable_job_lease'), models.Index(condition=models.Q(('finished_at__isnull', False)), fields=['queue', 'finished_at'], name='reliable_job_settled'), models.Index(condition=models.Q(('finished_at__isnull', False)), fields=['status', 'finished_at'], name='reliable_job_prune'), models.Index(fields=['created_at'], name='reliable_job_created'), models.Index(fields=['status', 'created_at'], name='reliable_job_status'), models.Index(fields=['task', 'created_at'], name='reliable_job_task'), models.Index(condition=models.Q(('parent_id__isnull', False)), fields=['parent_id'], name='reliable_job_parent'), models.Index(condition=models.Q(('root_id__isnull', False), models.Q(('root_id', models.F('id')), _negated=True)), fields=['root_id'], name='reliable_job_root'), models.Index(condition=models.Q(('key__isnull', False)), fields=['key'], name='reliable_job_by_key'), models.Index(condition=models.Q(('requeues__gt', 0)), fields=['created_at'], name='reliable_job_requeued'), models.Index(condition=models.Q(('crashes__gt', 0)), fields=['created_at'], name='reliable_job_crashed'), models.Index(condition=models.Q(('reason', 'parked')), fields=['created_at'], name='reliable_job_parked'), models.Index(condition=models.Q(('owes__isnull', False), ('status__in', ['waiting', 'running', 'sent'])), fields=['owes', 'place'], name='reliable_job_owes_open'), models.Index(condition=models.Q(('owes__isnull', False)), fields=['owes', 'place'], name='reliable_job_owes'), models.Index(condition=models.Q(('owes__isnull', False), ('status', 'sent')), fields=['check_at'], name='reliable_job_unreported')],
                'constraints': [reliable_jobs.columns.UniqueWhereGiven(fields=('task', 'live_key'), name='reliable_job_live_key')],
            },
        ),
        migrations.CreateModel(
            name='JobGroup',
            fields=[
                ('id', models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ('state', models.CharField(choices=[('open', 'open'), ('done', 'done'), ('failed', 'failed'), ('cancelled', 'cancelled')], default='open', max_length=10)),
                ('body_id', models.UUIDField(blank=True, null=True)),
                ('body', models.TextField()),
                ('owes', models.UUIDField(blank=True, null=True)),
                ('place', models.CharField(blank=True, db_default='', default='', max_length=255)),
                ('size', models.PositiveIntegerField(blank=True, null=True)),
                ('root_id', models.UUIDField(blank=True, null=True)),
                ('parent_id', models.UUIDField(blank=True, null=True)),
                ('priority', models.SmallIntegerField(blank=True, null=True)),
                ('error', models.TextField(blank=True, default='')),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ('decided_at', models.DateTimeField(blank=True, null=True)),
            ],
            options={
                'indexes': [models.Index(condition=models.Q(('state', 'open')), fields=['owes'], name='reliable_group_owes'), models.Index(condition=models.Q(('state', 'open')), fields=['created_at'], name='reliable_group_open'), models.Index(fields=['body_id'], name='reliable_group_body'), models.Index(condition=models.Q(('parent_id__isnull', False)), fields=['parent_id'], name='reliable_group_parent'), models.Index(condition=models.Q(('decided_at__isnull', False)), fields=['decided_at'], name='reliable_group_decided')],
            },
        ),
        migrations.CreateModel(
            name='CancelledWorkflow',
            fields=[
                ('root_id', models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ('actor', models.CharField(blank=True, default='', max_length=255)),
                ('at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('over', models.BooleanField(db_default=False, default=False)),
            ],
            options={
                'indexes': [models.Index(condition=models.Q(('over', False)), fields=['at'], name='reliable_cancelled_open')],
            },
        ),
        migrations.CreateModel(
            name='JobState',
            fields=[
                ('job', models.OneToOneField(db_constraint=False, on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name='task_state', serialize=False, to='reliable_jobs.job')),
                ('epoch', models.PositiveIntegerField()),
                ('state', models.CharField(max_length=255)),
                ('meta', models.TextField(blank=True, null=True)),
                ('at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
        ),
        migrations.CreateModel(
            name='SavedGroup',
            fields=[
                ('group_id', models.CharField(max_length=255, primary_key=True, serialize=False)),
                ('results', models.TextField()),
                ('at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                'indexes': [models.Index(fields=['at'], name='reliable_saved_group_at')],
            },
        ),
        migrations.CreateModel(
            name='JobEvent',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('failure', 'failure'), ('crash', 'crash'), ('time limit', 'hard time limit'), ('interruption', 'interruption'), ('rescue', 'rescue'), ('requeue', 'requeue'), ('cancel', 'cancel'), ('expiry', 'expiry'), ('parked', 'parked'), ('unroutable', 'unroutable')], max_length=20)),
                ('at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('actor', models.CharField(blank=True, default='', max_length=255)),
                ('detail', models.TextField(blank=True, default='')),
                ('traceback', models.TextField(blank=True, default='')),
                ('job', models.ForeignKey(db_constraint=False, on_delete=django.db.models.deletion.CASCADE, related_name='events', to='reliable_jobs.job')),
            ],
            options={
                'indexes': [models.Index(fields=['at'], name='reliable_job_event_at')],
            },
        ),
        migrations.RunPython(set_autovacuum, reset_autovacuum, hints={"model_name": "job"}),
    ]
