"""What stands where in a server's folder, and which folder of the bundle it loads."""

from __future__ import annotations

ADAPTER_FOLDER = "adapters"
ORIGINAL_FOLDER = "originals"
TEMPLATE_FOLDER = "templates"
NEIGHBOUR_FOLDER = "models"
MERGED_FOLDER = "merged"


def template_path(name: str) -> str:
    """Returns the file of an adapter's own chat template, below the server's folder."""
    return f"{TEMPLATE_FOLDER}/{name}.jinja"


def original_path(name: str) -> str:
    """Returns the folder of an adapter as it was trained, below the server's."""
    return f"{ORIGINAL_FOLDER}/{name}"


def adapter_path(name: str) -> str:
    """Returns the folder that the server loads an adapter from, below its own."""
    return f"{ADAPTER_FOLDER}/{name}"


def neighbour_path(name: str) -> str:
    """Returns the folder of a neighbour, below the first server's."""
    return f"{NEIGHBOUR_FOLDER}/{name}"


def merged_folder(name: str) -> str:
    """Returns the folder of a merged model in the bundle."""
    return f"{MERGED_FOLDER}/{name}"
