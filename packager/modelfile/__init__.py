"""Ollama's Modelfile and the request that creates a model, as values with writer and parser."""
