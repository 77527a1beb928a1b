"""The templates of `templates/vllm/`, filled in so that every value stays a value."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from jinja2 import StrictUndefined
from jinja2.loaders import FunctionLoader
from jinja2.sandbox import ImmutableSandboxedEnvironment

from packager.container.deployment import HOME, Deployment
from packager.markup import clean
from packager.resource import read_resource
from packager.serving.document import PORT


def render_template(name: str, deployment: Deployment, **more: Any) -> str:
    """Returns a template of `templates/vllm/` with every value quoted as JSON, and so as YAML."""
    values = {"served": deployment, "plan": deployment.plan, "port": PORT, "home": HOME, **more}
    return _environment().get_template(f"templates/vllm/{name}.j2").render(values)


def _quote(value: Any) -> str:
    # What JSON writes on one line, YAML reads as the same value.
    return json.dumps(clean(value) if isinstance(value, str) else value, ensure_ascii=False)


def _bare(value: str) -> _Bare:
    return _Bare(value)


class _Bare(str):
    """A word of our own, such as a resource's name, that needs no quotes."""

    __slots__ = ()


def _show(value: Any) -> str:
    return value if isinstance(value, _Bare) else _quote(value)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(read_resource),
        finalize=_show,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # YAML; every value is quoted by finalize
    )
    environment.filters["bare"] = _bare
    return environment
