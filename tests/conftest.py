"""Fixtures that every test may use."""

from tests.support.kafka import kafka, two_regions

__all__ = ["kafka", "two_regions"]
