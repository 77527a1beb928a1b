"""A bundle as an OpenAI-compatible endpoint: by vLLM, or by llama.cpp where that is missing.

The only room besides `packager.process` that starts programs: what it starts lives until it is
stopped. Code of a bundle is never run; the gate in front of either engine is lorapack's own.
"""

from packager.serve.request import Endpoint, ServeRequest
from packager.serve.server import Server, serve_bundle

__all__ = ["Endpoint", "ServeRequest", "Server", "serve_bundle"]
