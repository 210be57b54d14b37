from __future__ import annotations

import django.db.models.deletion
import django.db.models.functions.datetime
import uuid
from typing import Any

from django.db import migrations, models


def leave_room(apps: Any, schema_editor: Any) -> None:
    """For the next version of each row on its own page: see ``ProcessSeen``."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("ALTER TABLE IF EXISTS reliable_jobs_processseen SET (fillfactor = 50)")


class Migration(migrations.Migration):

    dependencies = [
        ('reliable_jobs', '0002_what_fails_and_what_waits'),
    ]

    operations = [
        migrations.CreateModel(
            name='Process',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('kind', models.CharField(choices=[('worker', 'worker'), ('beat', 'beat'), ('relay', 'relay')], max_length=10)),
                ('name', models.CharField(max_length=255)),
                ('host', models.CharField(max_length=255)),
                ('pid', models.PositiveIntegerField()),
                ('release', models.CharField(blank=True, db_default='', default='', max_length=200)),
                ('pool', models.CharField(blank=True, db_default='', default='', max_length=32)),
                ('started_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('ended_at', models.DateTimeField(blank=True, null=True)),
            ],
            options={'verbose_name': 'process', 'verbose_name_plural': 'workers and other processes'},
        ),
        migrations.CreateModel(
            name='StatState',
            fields=[
                ('id', models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ('rolled', models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name='ProcessSeen',
            fields=[
                ('process', models.OneToOneField(db_constraint=False, on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name='seen', serialize=False, to='reliable_jobs.process')),
                ('seen_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('queues', models.JSONField(blank=True, default=list)),
                ('paused', models.JSONField(blank=True, default=list)),
                ('active', models.JSONField(blank=True, default=list)),
                ('broker_ok', models.BooleanField(blank=True, null=True)),
            ],
        ),
        migrations.CreateModel(
            name='QueueStat',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('at', models.DateTimeField()),
                ('queue', models.CharField(max_length=255)),
                ('waiting', models.IntegerField()),
                ('delayed', models.IntegerField()),
                ('running', models.IntegerField()),
                ('oldest_s', models.IntegerField()),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('at', 'queue'), name='reliable_queue_stat_once')],
            },
        ),
        migrations.CreateModel(
            name='Stat',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('span', models.PositiveSmallIntegerField(choices=[(60, 'minute'), (3600, 'hour')])),
                ('at', models.DateTimeField()),
                ('task', models.CharField(max_length=255)),
                ('queue', models.CharField(max_length=255)),
                ('ending', models.CharField(choices=[('succeeded', 'succeeded'), ('failed', 'failed'), ('cancelled', 'cancelled'), ('expired', 'expired'), ('retried', 'retried'), ('crashed', 'crashed')], max_length=10)),
                ('release', models.CharField(blank=True, max_length=200)),
                ('n', models.IntegerField()),
                ('sum_ms', models.BigIntegerField(db_default=0, default=0)),
                ('max_ms', models.BigIntegerField(db_default=0, default=0)),
                ('wait_sum', models.BigIntegerField(db_default=0, default=0)),
                ('wait_max', models.BigIntegerField(db_default=0, default=0)),
                *((f'{letter}{n}', models.IntegerField(db_default=0, default=0)) for letter in 'rw' for n in range(24)),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('span', 'at', 'task', 'queue', 'ending', 'release'), name='reliable_stat_once')],
            },
        ),
        migrations.RunPython(leave_room, migrations.RunPython.noop, hints={"model_name": "processseen"}),
    ]
