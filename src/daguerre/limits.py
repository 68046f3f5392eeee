"""Limits on what is read from files."""

MAX_PIXELS = 128_000_000  # of an image
