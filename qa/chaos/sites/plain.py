from __future__ import annotations

from qa.chaos.sites.common import *  # noqa: F403
from qa.chaos.sites.common import POSTGRESQL

DATABASES = {"default": POSTGRESQL}
