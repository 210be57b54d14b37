from django.db import models


class Order(models.Model):
    number = models.IntegerField()
    created = models.DateTimeField(auto_now_add=True)


class Entry(models.Model):
    """What was done for an order. Nothing here is unique: what is done twice is to be seen twice."""

    number = models.IntegerField()
    what = models.CharField(max_length=30)
    at = models.DateTimeField(auto_now_add=True)
