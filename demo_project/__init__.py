"""A small shop on reliable_jobs. As in any Celery project, the app is loaded when Django starts."""

from demo_project.celery import app as celery_app

__all__ = ("celery_app",)
