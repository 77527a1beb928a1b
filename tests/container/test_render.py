"""What is written for a server, and that it says what the plan says."""

from __future__ import annotations

import pytest
import yaml

from packager.container import container_files, render_container
from packager.serving.value import ServingPlan
from tests.container.plans import HUGE, PLANS, SMALL


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_files_are_known_beforehand_and_yaml_holds(plan: ServingPlan) -> None:
    texts = render_container(plan, proven=True)
    assert tuple(texts) == container_files(plan)
    for path, text in texts.items():
        if path.endswith(".yaml"):
            assert yaml.safe_load(text), path


def test_no_cluster_machine_is_asked_for_more_than_it_has() -> None:
    assert "k8s/deployment.yaml" in container_files(SMALL)
    assert not [path for path in container_files(HUGE) if path.startswith("k8s/")]
