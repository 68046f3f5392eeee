"""Tiny pipelines of diffusers for comparison."""

from tests.families.conftest import peer

__all__ = ["peer"]
