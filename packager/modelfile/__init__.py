"""Ollama's Modelfile and the request that creates a model, as values with writer and parser."""

from packager.modelfile.document import parse_modelfile, render_modelfile
from packager.modelfile.plan import plan_modelfile
from packager.modelfile.request import parse_create, render_create
from packager.modelfile.value import Message, Modelfile, ModelfileError, Parameter

__all__ = [
    "Message",
    "Modelfile",
    "ModelfileError",
    "Parameter",
    "parse_create",
    "parse_modelfile",
    "plan_modelfile",
    "render_create",
    "render_modelfile",
]
