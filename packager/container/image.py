"""Dockerfiles of a bundle: those of `docker/`, with this server's labels and files."""

from __future__ import annotations

import re
from collections.abc import Mapping

from packager import __version__
from packager.markup import clean
from packager.serving.value import ServingPlan

_ARGUMENT = re.compile(r'ARG (?P<name>[A-Z_]+)="[^"]*"')
_COPIED = re.compile(
    r"COPY --chmod=\d+ (?P<source>base|models|adapters|templates|expected\.json) \S+"
)
_UNSAFE = re.compile(r'(["\\$])')

# Source: SPDX License List 3.27. A Hub id that is none of these is no SPDX id.
_SPDX = {
    item.lower(): item
    for item in (
        "AFL-3.0", "AGPL-3.0", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause", "BSD-3-Clause",
        "BSD-3-Clause-Clear", "BSL-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-NC-2.0",
        "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-ND-3.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-2.0",
        "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0",
        "CC0-1.0", "EPL-1.0", "EPL-2.0", "EUPL-1.1", "EUPL-1.2", "ISC", "MIT", "MPL-2.0",
        "MS-PL", "NCSA", "ODbL-1.0", "OFL-1.1", "PDDL-1.0", "PostgreSQL", "Unlicense", "WTFPL",
        "Zlib",
    )
}  # fmt: skip


def render_dockerfile(text: str, plan: ServingPlan, *, proven: bool) -> str:
    """Returns a Dockerfile of this package as it stands in a bundle.

    Its arguments get this server's values, so that a plain build labels the image, and nothing is
    copied that the bundle does not hold.

    Args:
        text: The Dockerfile in `docker/`.
        plan: Of the server.
        proven: Whether the bundle holds the answers that the server is checked against.
    """
    labels = image_labels(plan)
    held = {
        "base": plan.base.baked,
        "models": bool(plan.neighbours),
        "adapters": bool(plan.adapters),
        "templates": plan.trusts_templates,
        "expected.json": proven,
    }
    lines = []
    for line in text.splitlines():
        copied = _COPIED.fullmatch(line)
        if copied is not None and not held[copied["source"]]:
            continue
        argument = _ARGUMENT.fullmatch(line)
        if argument is not None and argument["name"] in labels:
            lines.append(f'ARG {argument["name"]}="{_quote(labels[argument["name"]])}"')
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def image_labels(plan: ServingPlan) -> Mapping[str, str]:
    """Returns the value of each argument of a Dockerfile that becomes a label."""
    base, origin = plan.base, plan.base.origin
    first, *others = plan.names
    merges = [server.base.merged for server in (plan, *plan.neighbours)]
    return {
        "TITLE": f"{first} with {', '.join(others)}" if others else first,
        "DESCRIPTION": f"vLLM {plan.vllm_version} serving {_described(plan)}",
        "VERSION": __version__,
        "SOURCE": f"https://huggingface.co/{origin.repo}" if origin.repo else "",
        "REVISION": origin.commit or "",
        "LICENSES": spdx_id(base.license),
        "BASE_NAME": base.name if base.merged is None else origin.repo or "",
        "BASE_COMMIT": origin.commit or "",
        "BASE_DIGEST": origin.digest,
        "ADAPTERS": ",".join(f"{item.name}={item.digest}" for item in plan.adapters),
        "MERGED": ",".join(f"{item.adapter}={item.digest}" for item in merges if item),
        "VLLM_VERSION": plan.vllm_version,
    }


def _described(plan: ServingPlan) -> str:
    if plan.base.merged is None:
        beside = ", and merged models" if plan.neighbours else ""
        return f"{plan.base.name} and adapters on it{beside}"
    return "merged models" if plan.neighbours else f"the merged model {plan.base.name}"


def spdx_id(license_id: str) -> str:
    """Returns a licence as the OCI annotation wants it: an SPDX id, or a reference of our own.

    Source: OCI image-spec 1.1, annotations.md, org.opencontainers.image.licenses.
    """
    reference = "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", license_id)
    return _SPDX.get(license_id.lower(), reference)


def _quote(value: str) -> str:
    return _UNSAFE.sub(r"\\\1", clean(value))
