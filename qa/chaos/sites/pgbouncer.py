"""The port is PgBouncer's, and nothing here says so: no DISABLE_SERVER_SIDE_CURSORS, no CONN_MAX_AGE."""

from __future__ import annotations

from qa.chaos.sites.common import *
from qa.chaos.sites.common import POSTGRESQL

DATABASES = {"default": POSTGRESQL}
