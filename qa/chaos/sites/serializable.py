from __future__ import annotations

from django.db.backends.postgresql.psycopg_any import IsolationLevel

from qa.chaos.sites.common import *
from qa.chaos.sites.common import POSTGRESQL, POSTGRESQL_OPTIONS

OPTIONS = {**POSTGRESQL_OPTIONS, "isolation_level": IsolationLevel.SERIALIZABLE}
DATABASES = {"default": {**POSTGRESQL, "OPTIONS": OPTIONS}}
