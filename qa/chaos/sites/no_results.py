from __future__ import annotations

from qa.chaos.sites.common import *
from qa.chaos.sites.common import POSTGRESQL

DATABASES = {"default": POSTGRESQL}
CELERY_RESULT_BACKEND = None
