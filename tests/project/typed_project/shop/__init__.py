"""A project that is checked for types, and whose tasks are found by Celery: tests/project/test_typed_project.py."""
