"""Checking a bundle against its manifest, its base and its adapter."""
