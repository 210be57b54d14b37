from __future__ import annotations

from django.db import models


class Effect(models.Model):
    """One line per database effect of a body; no uniqueness, so that a doubled effect shows."""

    name = models.CharField(max_length=200, db_index=True)
    value = models.CharField(max_length=200, blank=True, default="")
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class Parent(models.Model):
    name = models.CharField(max_length=200, unique=True)

    def __str__(self) -> str:
        return self.name


class Child(models.Model):
    """Its foreign key is a deferred constraint: a wrong one fails at commit."""

    parent = models.ForeignKey(Parent, on_delete=models.CASCADE)

    def __str__(self) -> str:
        return str(self.pk)
