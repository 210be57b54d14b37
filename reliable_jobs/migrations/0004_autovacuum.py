from __future__ import annotations

from typing import Any

from django.db import migrations

#: PostgreSQL's own setting lets a fifth of a table be dead rows before it cleans up, and every job leaves one or two.
SETTINGS = {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_analyze_scale_factor": "0.02",
    "autovacuum_vacuum_cost_delay": "0",
}


def set_autovacuum(apps: Any, schema_editor: Any) -> None:
    _alter(schema_editor, "SET", ", ".join(f"{name} = {value}" for name, value in SETTINGS.items()))


def reset_autovacuum(apps: Any, schema_editor: Any) -> None:
    _alter(schema_editor, "RESET", ", ".join(SETTINGS))


def _alter(schema_editor: Any, verb: str, what: str) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(f"ALTER TABLE IF EXISTS reliable_jobs_job {verb} ({what})")


class Migration(migrations.Migration):
    """Measured: docs/performance.md, "Tables that have grown"."""

    dependencies = [("reliable_jobs", "0003_without_the_index_of_all_keys")]

    operations = [migrations.RunPython(set_autovacuum, reset_autovacuum, hints={"model_name": "job"})]
