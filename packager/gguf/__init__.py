"""GGUF: what a merged model is called there, how it is typed, and how its blocks are made."""

from packager.gguf.architecture import supported_architectures
from packager.gguf.general import GeneralFacts, general_keys, sampling_keys
from packager.gguf.mapping import architecture_keys, map_model, with_keys
from packager.gguf.tokenizer import read_tokenizer_keys
from packager.gguf.value import GgufKey, GgufModel, GgufTensor

__all__ = [
    "GeneralFacts",
    "GgufKey",
    "GgufModel",
    "GgufTensor",
    "architecture_keys",
    "general_keys",
    "map_model",
    "read_tokenizer_keys",
    "sampling_keys",
    "supported_architectures",
    "with_keys",
]
