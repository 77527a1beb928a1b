"""A Hub on 127.0.0.1 that the real huggingface_hub client can talk to. See server.LoopbackHub.

Not spoken: pull requests, datasets and Spaces.
"""

from tests.loopback_hub.client import Client
from tests.loopback_hub.fault import Fault, Request
from tests.loopback_hub.server import LoopbackHub

__all__ = ["Client", "Fault", "LoopbackHub", "Request"]
