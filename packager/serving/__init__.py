"""Serving a base with many adapters: the launch configuration and its answers, as values."""
