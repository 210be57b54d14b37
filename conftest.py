"""Fixtures that tests/ and qa/ share."""

pytest_plugins = ["tests.support.fixtures"]
