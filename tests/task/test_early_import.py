"""A project's celery.py subclasses our bases before Django's apps are loaded: E3 in FOUND.md."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROJECT = {
    "proj/__init__.py": """
        from .celery import app as celery_app

        __all__ = ("celery_app",)
    """,
    "proj/celery.py": """
        import os

        from celery import Celery
        from reliable_jobs import DayLongTask, ReliableTask
        from reliable_jobs.idempotency import GetOrCreateTask, IdempotentTask, UpdateOrCreateTask, once

        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")


        class MyTask(ReliableTask):
            atomic = False


        class PerOrder(IdempotentTask):
            def natural_key(self, number):
                return number


        app = Celery("proj", task_cls=MyTask)
        app.config_from_object("django.conf:settings", namespace="CELERY")
        app.autodiscover_tasks()
    """,
    "proj/settings.py": """
        from pathlib import Path

        SECRET_KEY = "x"
        INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "reliable_jobs", "shop"]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(__file__).parent / "db.sqlite3"}}
        USE_TZ = True
        CELERY_BROKER_URL = "memory://"
    """,
    "shop/__init__.py": "",
    "shop/tasks.py": """
        from celery import shared_task
        from proj.celery import PerOrder


        @shared_task
        def of_the_app(number):
            return number


        @shared_task(base=PerOrder)
        def once_per_order(number):
            return number
    """,
    "use.py": """
        import os
        import django

        os.environ["DJANGO_SETTINGS_MODULE"] = "proj.settings"
        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        from proj.celery import MyTask
        from reliable_jobs.models import Job
        from shop.tasks import of_the_app, once_per_order

        assert isinstance(of_the_app._get_current_object(), MyTask)
        of_the_app.delay(1)
        assert once_per_order.delay(17).id == once_per_order.delay(17).id
        print(sorted(Job.objects.values_list("task", flat=True)))
    """,
}


@pytest.mark.slow
def test_e3_a_base_class_is_subclassed_before_the_apps_are_loaded(tmp_path: Path) -> None:
    for name, text in PROJECT.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    root = str(Path(__file__).parent.parent.parent)
    env = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    env.update(PYTHONPATH=f"{tmp_path}{os.pathsep}{root}")
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['shop.tasks.of_the_app', 'shop.tasks.once_per_order']"
