"""What a PEFT adapter is, read from its configuration and its header, without its weights."""

from packager.adapter.config import AdapterConfig, parse_adapter_config
from packager.adapter.feature import find_features
from packager.adapter.parameter import ParameterPair
from packager.adapter.spec import read_adapter
from packager.adapter.support import Feature, Support
from packager.adapter.value import AdapterSpec, LoraModule, TokenRows

__all__ = [
    "AdapterConfig",
    "AdapterSpec",
    "Feature",
    "LoraModule",
    "ParameterPair",
    "Support",
    "TokenRows",
    "find_features",
    "parse_adapter_config",
    "read_adapter",
]
