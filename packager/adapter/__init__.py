"""What a PEFT adapter is, read from its configuration and its header, without its weights."""

from packager.adapter.config import AdapterConfig, parse_adapter_config
from packager.adapter.feature import Feature, Support, find_features
from packager.adapter.spec import AdapterSpec, LoraModule, read_adapter

__all__ = [
    "AdapterConfig",
    "AdapterSpec",
    "Feature",
    "LoraModule",
    "Support",
    "find_features",
    "parse_adapter_config",
    "read_adapter",
]
