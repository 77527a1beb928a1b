"""Servers of merged models beside the first one, in every text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import promql_parser
import pytest
import yaml

from packager.container import render_container
from packager.servercard import render_server_card
from packager.serving.document import gate_config
from packager.serving.value import ServingPlan
from tests.container.plans import COMMIT, DIGESTS, LARGE, MERGED, MIXED, PLANS, SMALL, make_mixed

COOK, DORA = (server.service for server in MIXED.neighbours)
FRONT = "qwen2-5-7b-instruct"
SEVENTY = make_mixed(LARGE, share=None)
PAIR = replace(SEVENTY, neighbours=SEVENTY.neighbours[:1])


def document(plan: ServingPlan, path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(render_container(plan, proven=True)[path])
    return loaded


def services(plan: ServingPlan, profile: str) -> dict[str, dict[str, Any]]:
    found = document(plan, "compose.yaml")["services"]
    return {name: item for name, item in found.items() if item["profiles"] == [profile]}


def test_texts_are_as_reviewed(check_golden: Callable[[str, str], None]) -> None:
    for path, text in render_container(MIXED, proven=True).items():
        if "requirements" not in path:
            check_golden(f"container/mixed/{path.removeprefix('.')}", text)


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_compose_finds_neighbours_where_the_gate_looks(profile: str) -> None:
    found = services(MIXED, profile)
    urls = [item.url for item in gate_config(MIXED, None).neighbours]
    aliases = [
        f"http://{alias}:8000"
        for service in found.values()
        for alias in service.get("networks", {"default": {"aliases": []}})["default"]["aliases"]
    ]
    assert aliases == urls == [f"http://{COOK}:8000", f"http://{DORA}:8000"]
    # The first server alone is called from outside; all of them know the same keys.
    assert [name for name, service in found.items() if "ports" in service] == [profile]
    assert len({json.dumps(service["secrets"]) for service in found.values()}) == 1
    assert {service["image"] for service in found.values()} == {f"{FRONT}:{profile}"}


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_compose_starts_one_server_after_the_other(profile: str) -> None:
    found = services(MIXED, profile)
    order = list(found)
    for name, next_name in zip(order, [*order[1:], None], strict=True):
        wanted = {} if next_name is None else {next_name: {"condition": "service_healthy"}}
        assert found[name].get("depends_on", {}) == wanted
        assert found[name]["healthcheck"]["test"][-1] == "ready"
    assert order[0] == profile
    assert len(order) == 3


def test_compose_mounts_merged_models_where_they_are_loaded() -> None:
    cook = services(MIXED, "cpu")[f"cpu-{COOK}"]
    assert cook["environment"]["LORAPACK_HOME"] == "/srv/lorapack/models/cook"
    assert cook["environment"]["HF_HUB_OFFLINE"] == "1"
    assert cook["volumes"][1]["source"] == "${MERGED_DIR:-../merged}/cook"
    assert cook["volumes"][1]["target"] == "/srv/lorapack/models/cook/base"
    (alone,) = services(MERGED, "cpu").values()
    assert alone["volumes"][1]["target"] == "/srv/lorapack/base"
    assert "LORAPACK_HOME" not in alone["environment"]
    baked = PLANS["mixed-baked"]
    assert all(
        service["volumes"] == ["cache:/cache"] for service in services(baked, "cpu").values()
    )


def test_servers_on_the_same_gpus_leave_room_for_each_other() -> None:
    for service in services(MIXED, "gpu").values():
        assert devices(service) == ["0"]
        assert "--gpu-memory-utilization" not in service["command"]
    # In a cluster each has GPUs of its own, whose memory it may take.
    for path in ("k8s/deployment.yaml", f"k8s/{COOK}/deployment.yaml"):
        (container,) = document(MIXED, path)["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert container["args"][-2:] == ["--gpu-memory-utilization", "0.92"]


def test_servers_that_one_gpu_does_not_hold_have_their_own() -> None:
    found = services(PAIR, "gpu")
    assert [devices(service) for service in found.values()] == [list("0123"), list("4567")]
    # They need not wait for each other.
    assert not [service for service in found.values() if "depends_on" in service]
    (container,) = document(PAIR, f"k8s/{COOK}/deployment.yaml")["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["args"][-2:] == ["--tensor-parallel-size", "4"]
    # Three of four GPUs each are more than a machine has, but not more than a cluster.
    paths = set(render_container(SEVENTY, proven=True))
    assert "compose.yaml" not in paths
    assert f"k8s/{COOK}/deployment.yaml" in paths


def devices(service: dict[str, Any]) -> list[str]:
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    found: list[str] = device["device_ids"]
    return found


def test_single_server_leaves_its_gpus_to_the_engine() -> None:
    assert "--gpu-memory-utilization" not in json.dumps(document(SMALL, "k8s/deployment.yaml"))


def test_cluster_gives_each_server_its_folder_and_service() -> None:
    for server, url in zip(MIXED.neighbours, (COOK, DORA), strict=True):
        deployment = document(MIXED, f"k8s/{url}/deployment.yaml")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        home = f"/srv/lorapack/models/{server.base.name}"
        assert {"name": "LORAPACK_HOME", "value": home} in container["env"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["base"] == f"{home}/base"
        (port,) = document(MIXED, f"k8s/{url}/service.yaml")["spec"]["ports"]
        assert port["port"] == 8000
    (port,) = document(MIXED, "k8s/service.yaml")["spec"]["ports"]
    assert port["port"] == 80


def test_ray_has_an_application_for_each_server() -> None:
    front, cook, dora = document(MIXED, "ray/serve.yaml")["applications"]
    prefixes = [item["route_prefix"] for item in (front, cook, dora)]
    assert prefixes == ["/", f"/models/{COOK}", f"/models/{DORA}"]
    (config,) = front["args"]["llm_configs"]
    assert config["runtime_env"]["env_vars"]["LORAPACK_NEIGHBOURS"] == (
        f"cook=http://127.0.0.1:8000/models/{COOK},Über_dora=http://127.0.0.1:8000/models/{DORA}"
    )
    (config,) = cook["args"]["llm_configs"]
    assert config["model_loading_config"] == {
        "model_id": "cook", "model_source": "/srv/lorapack/models/cook/base",
    }  # fmt: skip
    assert config["runtime_env"]["env_vars"]["LORAPACK_HOME"] == "/srv/lorapack/models/cook"
    # Replicas have GPUs of their own.
    assert "gpu_memory_utilization" not in config["engine_kwargs"]
    assert not [name for name in config["engine_kwargs"] if "lora" in name]


def test_prometheus_asks_every_server_as_its_own_job() -> None:
    jobs = document(MIXED, "monitoring/prometheus.yaml")["scrape_configs"]
    relabelled = jobs[0]["relabel_configs"]
    assert relabelled[0]["regex"].split("|") == [FRONT, COOK, DORA]
    assert relabelled[1]["target_label"] == "job"
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs[1:]}
    assert targets == {
        f"{FRONT}-compose": ["gpu:8000", "cpu:8000"],
        f"{COOK}-compose": [f"{COOK}:8000"],
        f"{DORA}-compose": [f"{DORA}:8000"],
    }


def test_dashboard_counts_a_neighbours_requests_once() -> None:
    """The gates of both servers count them; what the probe measured, its own server tells alone."""
    dashboard = json.loads(render_container(MIXED, proven=True)["monitoring/dashboard.json"])
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == ["Engine", *MIXED.names]
    queries = [
        target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
        if 'model="cook"' in target["expr"]
    ]
    assert len(queries) == 6
    for query in queries:
        assert promql_parser.parse(query.replace("$__rate_interval", "5m").replace("$job", ".*"))
        leaves_out = f'job!~"{COOK}(-compose)?|{DORA}(-compose)?"' in query
        assert leaves_out == ("lorapack_probe" not in query)
    # Without neighbours nothing is left out.
    assert "job!~" not in render_container(SMALL, proven=True)["monitoring/dashboard.json"]


@pytest.mark.parametrize("path", ["Dockerfile", "Dockerfile.cpu"])
def test_image_is_labelled_with_merged_models(path: str) -> None:
    text = render_container(MIXED, proven=True)[path]
    merged = f"cook={DIGESTS['cook']},Über_dora={DIGESTS['Über_dora']}"
    assert f'ARG MERGED="{merged}"\n' in text
    assert "COPY --chmod=0555 models models\n" in text
    alone = render_container(MERGED, proven=True)[path]
    assert 'ARG TITLE="cook"\n' in alone
    assert 'ARG BASE_NAME="Qwen/Qwen2.5-7B-Instruct"\n' in alone
    assert f'ARG BASE_COMMIT="{COMMIT}"\n' in alone
    assert "COPY --chmod=0555 adapters" not in alone
    assert "COPY --chmod=0555 models" not in alone


def test_readme_names_the_files_that_there_are() -> None:
    for plan in (MIXED, PAIR, SEVENTY, PLANS["huge"]):
        card = render_server_card(plan, {}, folded=frozenset(), differences={})
        paths = set(render_container(plan, proven=True))
        assert ("docker compose" in card) == ("compose.yaml" in paths)
        assert ("kubectl apply" in card) == ("k8s/kustomization.yaml" in paths)
        assert "serve deploy ray/serve.yaml" in card
