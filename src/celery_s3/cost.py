"""The former home of :mod:`celery_s3.costs.prices`, under which its documented names stay importable."""

from .costs.prices import bill, price_table, prices_name

__all__ = ["bill", "price_table", "prices_name"]
