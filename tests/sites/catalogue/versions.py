"""Sites that differ in their versions: the oldest that pyproject.toml allows, and the newest on the registry."""

from __future__ import annotations

from tests.sites.site import Site

DJANGO_52, DJANGO_60, DJANGO_61 = "django>=5.2,<5.3", "django>=6.0,<6.1", "django>=6.1,<6.2"
CELERY_55, CELERY_56, CELERY_57 = "celery>=5.5,<5.6", "celery>=5.6,<5.7", "celery>=5.7,<5.8"
BINARY = "psycopg[binary]>=3.2"
OLDEST = ("django==5.2", "celery==5.5.0", "psycopg[binary]==3.2.1")  # 3.2.0 has no binary


def site(name: str, varies: str, python: str, *requirements: str, **more: object) -> Site:
    return Site(name, varies, "versions", python=python, requirements=requirements, **more)  # type: ignore[arg-type]


VERSIONS = [
    site("oldest", "Python 3.10, Django 5.2, Celery 5.5.0, psycopg 3.2.1", "3.10", *OLDEST),
    site(
        "oldest-threads",
        "Python 3.10, Django 5.2, Celery 5.5.0, psycopg 3.2.1, `-P threads`",
        "3.10",
        *OLDEST,
        pool="threads",
        concurrency=4,
    ),
    site("python-3.10", "Python 3.10, the newest Django and Celery for it", "3.10", DJANGO_52, CELERY_57, BINARY),
    site("python-3.11", "Python 3.11, the newest Django and Celery for it", "3.11", DJANGO_52, CELERY_57, BINARY),
    site("python-3.12", "Python 3.12", "3.12", DJANGO_60, CELERY_57, BINARY),
    site("django-5.2", "Django 5.2", "3.13", DJANGO_52, CELERY_57, BINARY),
    site("django-6.1", "Django 6.1, without beat", "3.13", DJANGO_61, CELERY_57, BINARY, extras=("results",)),
    site("celery-5.5", "Celery 5.5", "3.13", DJANGO_60, CELERY_55, BINARY),
    site("celery-5.6", "Celery 5.6", "3.13", DJANGO_60, CELERY_56, BINARY),
    site("psycopg-c", "psycopg in C, built here", "3.13", DJANGO_60, CELERY_57, "psycopg[c]>=3.2"),
    site("psycopg-python", "psycopg in Python", "3.13", DJANGO_60, CELERY_57, "psycopg>=3.2"),
    site("psycopg2", "psycopg2", "3.13", DJANGO_60, CELERY_57, "psycopg2-binary>=2.9"),
    site(
        "without-sources",
        "packages deployed as .pyc files only",
        "3.13",
        DJANGO_60,
        CELERY_57,
        BINARY,
        compiled=True,
    ),
    site(
        "optimised",
        "`python -OO`: neither docstrings nor assertions",
        "3.13",
        DJANGO_60,
        CELERY_57,
        BINARY,
        variables={"PYTHONOPTIMIZE": "2"},
    ),
]
