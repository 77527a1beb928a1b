"""What is written for a server, and that it says what the plan says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml

from packager import __version__
from packager.container import container_files, render_container
from packager.container.image import spdx_id
from packager.container.label import resource_name
from packager.serving.value import ServingPlan
from tests.container.plans import BAKED, COMMIT, DIGEST, DIGESTS, FOLDER, GATED, LARGE, PLANS, SMALL

IMAGES = ("Dockerfile", "Dockerfile.cpu")


def rendered(plan: ServingPlan, path: str, *, proven: bool = True) -> str:
    return render_container(plan, proven=proven)[path]


def document(plan: ServingPlan, path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(rendered(plan, path))
    return loaded


def container_of(plan: ServingPlan) -> dict[str, Any]:
    pod = document(plan, "k8s/deployment.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return {**container, "volumes": pod["volumes"], "pod": pod}


@pytest.mark.parametrize("name", ["folder", "large"])
def test_texts_are_as_reviewed(name: str, check_golden: Callable[[str, str], None]) -> None:
    for path, text in render_container(PLANS[name], proven=True).items():
        if "requirements" not in path:
            check_golden(f"container/{name}/{path.removeprefix('.')}", text)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_paths_are_known_beforehand(plan: ServingPlan) -> None:
    assert tuple(render_container(plan, proven=False)) == container_files(plan)


def test_what_one_machine_cannot_hold_is_for_ray_alone() -> None:
    assert [path for path in container_files(SMALL) if path.startswith("k8s/")]
    huge = container_files(PLANS["huge"])
    assert not [path for path in huge if path.startswith("k8s/") or path == "compose.yaml"]


@pytest.mark.parametrize("path", IMAGES)
def test_image_copies_what_the_bundle_holds(path: str) -> None:
    copied = re.compile(r"^COPY --chmod=0555 (.+) \S+$", re.MULTILINE)
    always = ["adapters", "gate", "serve.yaml gate.json *LICEN* *NOTICE* *POLICY* *COPYING*"]
    assert copied.findall(rendered(SMALL, path, proven=False)) == always
    assert copied.findall(rendered(BAKED, path)) == [
        "base", *always[:2], "expected.json", always[2],
    ]  # fmt: skip
    assert "templates" in copied.findall(rendered(FOLDER, path))


@pytest.mark.parametrize("path", IMAGES)
def test_image_is_labelled_with_what_it_serves(path: str) -> None:
    labels = dict(re.findall(r'^ARG ([A-Z_]+)="(.*)"$', rendered(SMALL, path), re.MULTILINE))
    given = {key: value for key, value in labels.items() if not key.startswith("PIP_")}
    assert given == {
        "TITLE": "Qwen/Qwen2.5-7B-Instruct with pirate, poet",
        "DESCRIPTION": "vLLM 0.32.0 serving Qwen/Qwen2.5-7B-Instruct and adapters on it",
        "VERSION": __version__,
        "SOURCE": "https://huggingface.co/Qwen/Qwen2.5-7B-Instruct",
        "REVISION": COMMIT,
        "LICENSES": "Apache-2.0",
        "BASE_NAME": "Qwen/Qwen2.5-7B-Instruct",
        "BASE_COMMIT": COMMIT,
        "BASE_DIGEST": DIGEST,
        "ADAPTERS": f"pirate={DIGESTS['pirate']},poet={DIGESTS['poet']}",
        "MERGED": "",
        "VLLM_VERSION": "0.32.0",
    }
    # Each of them is used.
    assert {f'"${{{name}}}"' for name in given} <= set(
        re.findall(r'="?("\$\{[A-Z_]+\}")', rendered(SMALL, path))
    )


def test_names_stay_words_in_a_dockerfile() -> None:
    name = 'x" \\\nUSER root\nRUN $(evil) `evil`'
    hostile = replace(SMALL, base=replace(SMALL.base, name=name))
    for path in IMAGES:
        ours, theirs = (rendered(plan, path).splitlines() for plan in (SMALL, hostile))
        assert [line.split("=")[0] for line in ours] == [line.split("=")[0] for line in theirs]
        assert r'ARG BASE_NAME="x\" \\ USER root RUN \$(evil) `evil`"' in theirs


def test_names_stay_words_in_yaml_and_json() -> None:
    name = 'a: b\n- "c"\n# {{ d }} ${E} \u202e'
    hostile = replace(SMALL, base=replace(SMALL.base, name=name))
    for path, text in render_container(hostile, proven=True).items():
        if path.endswith(".yaml"):
            ours, theirs = yaml.safe_load(rendered(SMALL, path)), yaml.safe_load(text)
            assert shape_of(ours) == shape_of(theirs), path
    (row, *_) = json.loads(rendered(hostile, "monitoring/dashboard.json"))["panels"][9:]
    assert "{{ d }}" in json.dumps(row, ensure_ascii=False) or row["type"] == "timeseries"


def shape_of(value: Any) -> Any:
    """A document without its texts and numbers."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items() if "-client" not in str(key)}
    if isinstance(value, list):
        return [shape_of(item) for item in value]
    return type(value).__name__


@pytest.mark.parametrize("path", IMAGES)
def test_entry_point_is_no_shell(path: str) -> None:
    lines = rendered(SMALL, path).splitlines()
    for word in ("ENTRYPOINT ", "CMD ", "    CMD "):
        (line,) = [line for line in lines if line.startswith(word)]
        assert json.loads(line.strip().partition(" ")[2])
    assert "USER 10001:10001" in lines
    assert lines.index("USER 10001:10001") > max(
        number for number, line in enumerate(lines) if line.startswith(("RUN", "COPY"))
    )


def test_context_of_a_build_is_a_list_of_what_is_needed() -> None:
    lines = rendered(SMALL, ".dockerignore").splitlines()
    assert lines[1] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert {"base", "adapters", "templates", "gate", "expected.json", "serve.yaml"} <= allowed
    assert not allowed & {"originals", "api-key", "metrics-key", "hf-token"}


def test_compose_keeps_the_container_closed() -> None:
    composed = document(SMALL, "compose.yaml")
    assert set(composed["services"]) == {"gpu", "cpu"}
    for name, service in composed["services"].items():
        assert service["profiles"] == [name]
        assert service["read_only"] is True
        assert service["user"] == "10001:10001"
        assert service["cap_drop"] == ["ALL"]
        assert service["restart"] == "unless-stopped"
        assert service["ports"] == ["${LISTEN:-127.0.0.1}:${PORT:-8000}:8000"]
        assert service["volumes"] == ["cache:/cache"]
        assert service["secrets"] == ["lorapack-api-key", "lorapack-metrics-key"]
        # Kernels that were compiled at run time are loaded from there.
        assert ",exec," in service["tmpfs"][0]
        assert "KEY=" not in json.dumps(service)
    assert composed["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    ]


def test_large_base_takes_the_gpus_of_one_machine() -> None:
    gpu = document(LARGE, "compose.yaml")["services"]["gpu"]
    assert gpu["command"][-2:] == ["--tensor-parallel-size", "4"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 4
    container = container_of(LARGE)
    assert container["args"] == gpu["command"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    engine = document(LARGE, "ray/serve.yaml")["applications"][0]["args"]["llm_configs"][0]
    assert engine["engine_kwargs"]["tensor_parallel_size"] == 4


@pytest.mark.parametrize("plan", [BAKED, FOLDER], ids=["baked", "folder"])
def test_server_with_its_base_at_hand_reaches_nobody(plan: ServingPlan) -> None:
    assert "egress" not in document(plan, "k8s/network.yaml")["spec"]
    assert "Egress" in document(plan, "k8s/network.yaml")["spec"]["policyTypes"]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container_of(plan)["env"]
    assert document(plan, "compose.yaml")["services"]["cpu"]["environment"]["HF_HUB_OFFLINE"] == "1"


def test_base_from_a_folder_is_mounted_for_reading() -> None:
    volumes = document(FOLDER, "compose.yaml")["services"]["gpu"]["volumes"]
    assert volumes[1]["target"] == "/srv/lorapack/base"
    assert volumes[1]["read_only"] is True
    container = container_of(FOLDER)
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["base"] == {
        "name": "base", "mountPath": "/srv/lorapack/base", "readOnly": True,
    }  # fmt: skip
    claim = document(FOLDER, "k8s/base-claim.yaml")["metadata"]["name"]
    assert claim == "mein-modell-home-base"
    assert claim in json.dumps(container["volumes"])


def test_gated_base_is_fetched_with_a_token_from_a_secret() -> None:
    composed = document(GATED, "compose.yaml")
    assert composed["services"]["gpu"]["secrets"][-1] == "hf-token"
    assert composed["secrets"]["hf-token"] == {"file": "${HF_TOKEN_FILE:-hf-token}"}
    (keys,) = [volume for volume in container_of(GATED)["volumes"] if volume["name"] == "keys"]
    names = [source["secret"]["name"] for source in keys["projected"]["sources"]]
    assert names == ["qwen2-5-7b-instruct-keys", "qwen2-5-7b-instruct-hub"]
    assert "HF_TOKEN_PATH=/run/secrets/hf-token" in rendered(GATED, "Dockerfile")


def test_probes_ask_the_gate() -> None:
    container = container_of(SMALL)
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("liveness", "readiness")}
    assert asked["liveness"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/health"
    assert asked["readiness"]["path"] == "/ready"
    (autoscaler,) = document(SMALL, "k8s/autoscaler.yaml")["spec"]["metrics"]
    assert autoscaler["pods"]["metric"]["name"] == "vllm_num_requests_waiting"
    # Requests in flight are finished before the end: see the gate's LORAPACK_DRAIN_SECONDS.
    drain = 60
    stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert container["pod"]["terminationGracePeriodSeconds"] > drain + stop + 30


def test_ray_is_given_the_same_options_as_the_container() -> None:
    (application,) = document(FOLDER, "ray/serve.yaml")["applications"]
    assert application["import_path"] == "ray.serve.llm:build_openai_app"
    (config,) = application["args"]["llm_configs"]
    assert config["model_loading_config"] == {
        "model_id": "mein Modell $HOME", "model_source": "/srv/lorapack/base",
    }  # fmt: skip
    engine = config["engine_kwargs"]
    assert engine["middleware"] == ["lorapack_gate.Gate"]
    assert engine["trust_request_chat_template"] is True
    assert engine["lora_modules"][1] == {
        "name": "poet",
        "path": "/srv/lorapack/adapters/poet",
        "base_model_name": "mein Modell $HOME",
    }
    assert config["runtime_env"]["env_vars"] == {
        "LORAPACK_HOME": "/srv/lorapack", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2-5-7b-instruct"),
        ("3b", "model-3b-"),
        ("模型", "model-"),
        ("x" * 200, "x" * 31 + "-"),
        ("Übung_1", "ubung-1"),
    ],
)
def test_names_of_resources(name: str, found: str) -> None:
    made = resource_name(name)
    assert made.startswith(found)
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", made)


def test_licences_are_spdx_where_they_can_be() -> None:
    assert spdx_id("apache-2.0") == "Apache-2.0"
    assert spdx_id("cc-by-nc-sa-4.0") == "CC-BY-NC-SA-4.0"
    assert spdx_id("llama3.1") == "LicenseRef-llama3.1"
