"""Every document, read by the program or the schema that it is for; no network, no cluster."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml

from packager.container import render_container
from packager.serving.value import ServingPlan
from tests.container.plans import HUGE, PLANS, SMALL
from tests.vllm_engine import keep_vllm

KUBERNETES = ("1.32", "1.37")
CHECKOUT = Path(__file__).parents[2]
ON_ONE_MACHINE = {name: plan for name, plan in PLANS.items() if plan is not HUGE}
VARIABLES = {
    "BASE_DIR": "/data/base", "LISTEN": "127.0.0.1", "PORT": "8000", "API_KEY_FILE": "api-key",
    "METRICS_KEY_FILE": "metrics-key", "HF_TOKEN_FILE": "hf-token", "VLLM_CPU_KVCACHE_SPACE": "4",
    "MERGED_DIR": "/data/merged", "LORAPACK_ALLOWED_ORIGINS": "",
}  # fmt: skip


def script(name: str) -> str:
    """A program that a package of the test environment brings."""
    return str(Path(sys.executable).with_name(name))


def run(*command: str, given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write(folder: Path, plan: ServingPlan) -> Path:
    for path, text in render_container(plan, proven=True).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_dockerfiles_are_clean(plan: ServingPlan, tmp_path: Path) -> None:
    folder = write(tmp_path, plan)
    files = [str(folder / name) for name in ("Dockerfile", "Dockerfile.cpu", "ray/Dockerfile")]
    assert run(script("hadolint"), "--failure-threshold=style", *files) == ""


def test_dockerfiles_of_the_package_are_clean() -> None:
    files = sorted(map(str, (CHECKOUT / "docker").glob("*Dockerfile*")))
    files = [name for name in files if not name.endswith("ignore")]
    assert len(files) == 3
    assert run(script("hadolint"), "--failure-threshold=style", *files) == ""


@pytest.mark.parametrize("plan", ON_ONE_MACHINE.values(), ids=ON_ONE_MACHINE)
def test_kubernetes_takes_what_kustomize_makes(plan: ServingPlan, tmp_path: Path) -> None:
    made = run(script("kubectl"), "kustomize", str(write(tmp_path, plan) / "k8s"))
    objects: list[dict[str, Any]] = list(yaml.safe_load_all(made))
    for thing in objects:
        for version in KUBERNETES:
            kubernetes_validate.validate(thing, version, strict=True)
    claims = [path for path in render_container(plan, proven=True) if "/base-claim." in path]
    kinds = {"Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget",
             "Service"}  # fmt: skip
    servers = 1 + len(plan.neighbours)
    assert Counter(thing["kind"] for thing in objects) == Counter(
        dict.fromkeys(kinds, servers)
        | {"ServiceAccount": 1}
        | ({"PersistentVolumeClaim": len(claims)} if claims else {})
    )
    (account,) = [thing for thing in objects if thing["kind"] == "ServiceAccount"]
    names = [thing["metadata"]["name"] for thing in objects if thing["kind"] == "Deployment"]
    assert len(names) == servers
    for name in names:
        of_it = [thing for thing in objects if thing["metadata"]["name"] in (name, f"{name}-base")]
        _check_selectors({"ServiceAccount": account} | {thing["kind"]: thing for thing in of_it})
    _check_calls(plan, {thing["metadata"]["name"]: thing for thing in objects
                        if thing["kind"] == "NetworkPolicy"})  # fmt: skip


def _check_calls(plan: ServingPlan, policies: dict[str, dict[str, Any]]) -> None:
    """A neighbour lets the first server in, which may go there; nothing else calls."""
    front = next(name for name in policies if name not in {s.service for s in plan.neighbours})
    allowed = [
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
        for rule in policies[front]["spec"].get("egress", ())
        for peer in rule.get("to", ())
        if "podSelector" in peer
    ]
    assert allowed == [server.service for server in plan.neighbours]
    for server in plan.neighbours:
        spec = policies[server.service]["spec"]
        (rule,) = spec["ingress"]
        assert rule["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": front}
        assert "egress" not in spec


def _check_selectors(objects: dict[str, dict[str, Any]]) -> None:
    """What selects pods selects these; what is named is there."""
    deployment = objects["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    (container,) = pod["containers"]
    assert container["image"].startswith("registry.example.com/")
    (port,) = objects["Service"]["spec"]["ports"]
    assert port["targetPort"] in {item["name"] for item in container["ports"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert ("base" in volumes) == ("PersistentVolumeClaim" in objects)
    if "base" in volumes:
        claim = volumes["base"]["persistentVolumeClaim"]["claimName"]
        assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]


@pytest.mark.parametrize("plan", ON_ONE_MACHINE.values(), ids=ON_ONE_MACHINE)
def test_compose_file_is_one(plan: ServingPlan, tmp_path: Path) -> None:
    path = write(tmp_path, plan) / "compose.yaml"
    path.write_text(interpolate(path.read_text(encoding="utf-8")), encoding="utf-8")
    run(script("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path))
    composed = yaml.safe_load(path.read_text(encoding="utf-8"))
    for service in composed["services"].values():
        assert set(service["secrets"]) == set(composed["secrets"])
        assert {item.split(":")[0] for item in service["volumes"] if isinstance(item, str)} == set(
            composed["volumes"]
        )
        assert (path.parent / service["build"]["dockerfile"]).is_file()


def interpolate(text: str) -> str:
    """Fills in variables as compose does, `${NAME:-default}` and `${NAME:?error}`."""
    return re.sub(r"\$\{([A-Z_]+)(?::[-?][^}]*)?\}", lambda found: VARIABLES[found[1]], text)


def queries() -> list[str]:
    dashboard = json.loads(render_container(SMALL, proven=True)["monitoring/dashboard.json"])
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def parse_query(query: str) -> Any:
    # Grafana fills in its variables before Prometheus sees the query.
    return promql_parser.parse(query.replace("$__rate_interval", "5m").replace("$job", ".*"))


def test_queries_of_the_dashboard_are_promql() -> None:
    assert len(queries()) > 20
    for query in queries():
        assert str(parse_query(query).prettify())


def test_dashboard_has_a_row_for_each_model_and_no_panel_over_another() -> None:
    dashboard = json.loads(render_container(SMALL, proven=True)["monitoring/dashboard.json"])
    panels = dashboard["panels"]
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == ["Engine", "Qwen/Qwen2.5-7B-Instruct", "pirate", "poet"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for name in ("pirate", "poet"):
        of_it = [query for query in queries() if f'model="{name}"' in query]
        assert len(of_it) == 6


def test_dashboard_is_one_by_grafanas_own_model() -> None:
    from grafana_foundation_sdk.models import dashboard as model

    text = render_container(SMALL, proven=True)["monitoring/dashboard.json"]
    read = model.Dashboard.from_json(json.loads(text))
    assert read.title == "Qwen/Qwen2.5-7B-Instruct and its adapters"
    assert read.uid == "qwen2-5-7b-instruct"
    panels = [panel for panel in read.panels or [] if isinstance(panel, model.Panel)]
    assert len(panels) == len([p for p in json.loads(text)["panels"] if p["type"] != "row"])
    assert all(panel.targets and panel.grid_pos for panel in panels)


def metric_names(query: str) -> set[str]:
    return set(re.findall(r"\b((?:vllm:|lorapack_)\w+)\{", query))


def test_metrics_of_the_dashboard_are_vllms_and_the_gates() -> None:
    asked = {name for query in queries() for name in metric_names(query)}
    asked.add("vllm:num_requests_waiting")
    engine = keep_vllm().parents[1] / "lib"
    (loggers,) = engine.glob("python3.*/site-packages/vllm/v1/metrics/loggers.py")
    names = {
        f"{node.value}{ending}"
        for node in ast.walk(ast.parse(loggers.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and str(node.value).startswith("vllm:")
        # As prometheus_client shows counters and histograms.
        for ending in ("", "_total", "_bucket")
    }
    gate = (CHECKOUT / "docker/gate/lorapack_gate/metric.py").read_text(encoding="utf-8")
    names |= {
        f"{name}{ending}"
        for name in re.findall(r"lorapack_\w+", gate)
        for ending in ("", "_bucket")
    }
    assert len(asked) > 12
    assert asked <= names


def test_options_for_ray_are_fields_of_vllms_classes() -> None:
    engine = yaml.safe_load(render_container(PLANS["folder"], proven=True)["ray/serve.yaml"])
    (config,) = engine["applications"][0]["args"]["llm_configs"]
    lib = keep_vllm().parents[1] / "lib"
    fields: set[str] = set()
    for path in ("vllm/engine/arg_utils.py", "vllm/entrypoints/launchers/cli_args.py"):
        (found,) = lib.glob(f"python3.*/site-packages/{path}")
        fields |= {
            node.target.id
            for node in ast.walk(ast.parse(found.read_text(encoding="utf-8")))
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
    assert set(config["engine_kwargs"]) <= fields


def test_schemas_are_of_the_releases_that_are_named() -> None:
    assert metadata.version("kubernetes-validate").startswith(KUBERNETES[1])
