"""What the site sells, and the one effect that each job has."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    number = models.IntegerField()

    objects: models.Manager[Order] = models.Manager()

    class Meta:
        app_label = "project"
        db_table = "benchmark_order"

    def __str__(self) -> str:
        return f"order {self.number}"


class Effect(models.Model):
    """No constraint on the number: a doubled effect is to be seen and counted. The harness adds a column ``at`` that
    the server fills with its clock."""

    number = models.IntegerField()

    objects: models.Manager[Effect] = models.Manager()

    class Meta:
        app_label = "project"
        db_table = "benchmark_effect"

    def __str__(self) -> str:
        return f"effect {self.number}"
