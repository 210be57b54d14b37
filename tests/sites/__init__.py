"""Whole projects as people have them, with the built wheel installed: python -m tests.sites --help

A `Site` is data: a name and what it varies from the base site. Read them in this order:

- `site`: what a site may vary; `catalogue`: all the sites
- `environments`: the wheel of this checkout, and an environment for each set of versions
- `servers`: the databases and brokers that a site uses, and what is done to them
- `project`: startproject, Celery's first steps and settings that are written out; `template/` holds the project's files
- `run`: migrate, start, place orders, break something, wait; `verdict`: what came of the orders, by plain SQL
- `report`: the table
"""
