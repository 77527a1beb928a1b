"""Weights that a base stores quantised: how they lie in its files, and what values they stand for.

`scheme` and `logical` read configuration and headers and load no torch; `values` and `blockwise`
compute.
"""
