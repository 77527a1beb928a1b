"""Random damage to every file that a stranger can write: only known failures come of it."""
