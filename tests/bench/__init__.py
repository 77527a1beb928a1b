"""Benchmarks: whole processes, paired runs on one disk, medians and ratios. Never part of tests."""
