from __future__ import annotations

from typing import Any

from qa.chaos.sites.common import *
from qa.chaos.sites.common import DATABASE_NAME, DATABASE_PORT

DATABASES: dict[str, Any] = {
    "default": {
        "ENGINE": "django.db.backends.mysql",
        "NAME": DATABASE_NAME,
        "USER": "shop",
        "PASSWORD": "secret",
        "HOST": "127.0.0.1",
        "PORT": DATABASE_PORT,
        "CONN_MAX_AGE": 60,
        "OPTIONS": {
            "charset": "utf8mb4",
            "init_command": "SET sql_mode='STRICT_TRANS_TABLES'",
            "connect_timeout": 5,
            "read_timeout": 15,
            "write_timeout": 15,
        },
    }
}
