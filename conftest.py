"""Fixtures that tests/ and qa/ share, and the order of their files."""

pytest_plugins = ["tests.support.fixtures", "tests.support.scheduling"]
