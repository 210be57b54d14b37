from __future__ import annotations

from qa.chaos.sites.mariadb import *
from qa.chaos.sites.mariadb import DATABASES

DATABASES["default"]["OPTIONS"]["isolation_level"] = "repeatable read"
