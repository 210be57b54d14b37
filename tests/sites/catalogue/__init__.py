"""All the sites. Each differs from the base site in one thing."""

from __future__ import annotations

from tests.sites.catalogue.databases import DATABASES
from tests.sites.site import Site

BASE = Site("base", "plain DATABASES dict, the newest versions that run together, prefork", kind="base")

SITES: list[Site] = [BASE, *DATABASES]

#: Those that differ most; `make test` runs them.
FIVE = ["base", "sqlite"]
