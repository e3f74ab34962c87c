"""Every documented method of the families that tuning touches has an answer by name: it works, or says it is not built.

The official client's own HTTP rules are the oracle.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sarto.api.http.routing import Router
from sarto.api.routes import ROUTES
from sarto.api.vertex import unimplemented
from tests.api.doors import house

FAMILIES = (
    "gen_ai_tuning_service", "model_service", "endpoint_service", "job_service", "prediction_service",
    "llm_utility_service", "metadata_service", "tensorboard_service", "model_garden_service", "evaluation_service",
    "gen_ai_cache_service",
)  # fmt: skip
OTHERS = re.compile(
    "Operations?$|Iam(Policy|Permissions)$|CustomJob|DataLabeling|HyperparameterTuning|Nas(Job|Trial)|Monitoring"
)
"""Mixins, which name resources of every other service, and kinds of job beside batchPredictionJobs."""
WITHOUT_A_PATH = {"/v1beta1:evaluateDataset", "/v1beta1:evaluateInstances", "/v1beta1:generateInstanceRubrics"}


def rules() -> Iterator[tuple[str, str, str]]:
    """RPC, HTTP method and a path of every binding that the official REST client has."""
    for family in FAMILIES:
        for version in ("v1", "v1beta1"):
            module = importlib.import_module(
                f"google.cloud.aiplatform_{version}.services.{family}.transports.rest_base"
            )
            transport = next(kind for name, kind in vars(module).items() if name.startswith("_Base"))
            for name, rpc in vars(transport).items():
                if inspect.isclass(rpc) and hasattr(rpc, "_get_http_options") and not OTHERS.search(name):
                    for option in rpc._get_http_options():
                        path = re.sub(r"\{[^=}]*=([^}]*)\}", r"\1", option["uri"])
                        yield name.removeprefix("_Base"), option["method"].upper(), path.replace("*", "x")


def verb(path: str) -> str:
    return path.rpartition("/")[2].partition(":")[2]


@pytest.mark.filterwarnings("ignore")
def test_every_documented_method_has_a_route_of_its_own() -> None:
    router, seen = Router(ROUTES), 0
    for name, method, path in rules():
        if path not in WITHOUT_A_PATH:
            route, _ = router.find(method, path.encode())
            assert verb(route.path) == verb(path), f"{name}: {method} {path} falls to {route.path}"
            seen += 1
    assert seen > 250


def test_what_is_not_built_is_refused_by_its_official_name(tmp_path: Path) -> None:
    asyncio.run(_refused(tmp_path))


async def _refused(home: Path) -> None:
    async with house(home) as place:
        place.account("caller-00", "")
        for service, instead, base, methods in unimplemented.GROUPS:
            for name, rule in methods.items():
                method, _, rest = rule.partition(" ")
                path = re.sub(r"{(\w+)}", lambda found: "v1" if found[1] == "api" else "x", base + rest)
                answer = await place.ask("caller-00", method, path, {} if method in ("POST", "PATCH") else None)
                error = answer.json()["error"]
                assert (answer.status_code, error["status"]) == (400, "UNIMPLEMENTED"), (name, answer.text)
                assert error["message"] == f"{service}.{name} is not implemented. {instead}"
