"""Measurements that print tables and draw plots, committed under docs/ and benchmarks/."""
