"""The test suite; `tests.loopback_hub` is a package that several areas import."""
