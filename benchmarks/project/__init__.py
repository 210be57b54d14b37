"""The Django project that every contender runs in: an order, an effect, one task."""
