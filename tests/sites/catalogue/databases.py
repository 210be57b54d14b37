"""Sites that differ in their database."""

from __future__ import annotations

from tests.sites.site import Site

SQLITE = """
DATABASES = {
    'default': {
        'ENGINE': 'django.db.backends.sqlite3',
        'NAME': BASE_DIR / 'db.sqlite3',
    }
}
"""
ADVISED = SQLITE.replace(
    "    }\n",
    """        'OPTIONS': {
            'transaction_mode': 'IMMEDIATE',
            'timeout': 20,
            'init_command': 'PRAGMA journal_mode=WAL;',
        },
    }
""",
    1,
)

DATABASES = [
    Site(
        "sqlite",
        "SQLite as startproject configures it",
        "databases",
        database="sqlite",
        databases=SQLITE,
        named="reliable_jobs.W021",
    ),
    Site("sqlite-advised", "SQLite as docs/settings.md advises", "databases", database="sqlite", databases=ADVISED),
]
