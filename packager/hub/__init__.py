"""The Hub: resolving, downloading and checking a base.

With `publish`, the only room that imports huggingface_hub, and only when it is asked something.
"""

from packager.hub.fetch import fetch_files, wanted_base_files
from packager.hub.history import WeightChange, weight_changes_since
from packager.hub.hollow import fetch_hollow
from packager.hub.remote import RemoteFile, RemoteRepo, resolve_repo

__all__ = [
    "RemoteFile",
    "RemoteRepo",
    "WeightChange",
    "fetch_files",
    "fetch_hollow",
    "resolve_repo",
    "wanted_base_files",
    "weight_changes_since",
]
