"""Several adapters made one, a module at a time."""

from packager.combine.folder import combine_folders

__all__ = ["combine_folders"]
