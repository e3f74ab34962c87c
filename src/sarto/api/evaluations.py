"""evaluateDataset, an operation, and evaluateInstances, answered at once."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from sarto.api.evaluator import Generate
from sarto.api.generation import target_of
from sarto.api.http import Reply, in_control, parent, read_message, reply, services, until_gone
from sarto.api.operations import answer
from sarto.api.routing import Route
from sarto.control import dataset_evaluations, judge_endpoints
from sarto.control.dataset_evaluations import EVALUATE_DATASET, EVALUATE_INSTANCES
from sarto.control.resolution import Deployed
from sarto.schema.evaluation_service import EvaluateDatasetRequest, EvaluateInstancesRequest, EvaluateInstancesResponse
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse
from sarto.serving.generator import collect

PLACE = "/{api}/projects/{project}/locations/{location}"


async def evaluate_dataset(request: Request) -> Reply:
    asked = await read_message(request, EvaluateDatasetRequest)
    return answer(request, await in_control(request, dataset_evaluations.evaluate, parent(request), asked))


async def evaluate_instances(request: Request) -> Reply:
    asked = await read_message(request, EvaluateInstancesRequest)
    evaluator = services(request).evaluator
    asked = await in_control(request, dataset_evaluations.with_default_judge, parent(request), asked)
    found = await in_control(request, dataset_evaluations.judges, parent(request), evaluator.judges(asked))
    judges = {name: _judge(request, name, deployed) for name, deployed in found.items()}
    return reply(await until_gone(request, evaluator.scores(asked, judges)))


def _judge(request: Request, name: str, deployed: Deployed | None) -> Generate:
    """Who judges under that name: a model of this server, or one elsewhere."""
    served = services(request)

    async def here(asked: GenerateContentRequest) -> GenerateContentResponse:
        assert deployed is not None
        return await collect(served.generator.generate(target_of(served.control, deployed), asked))

    async def elsewhere(asked: GenerateContentRequest) -> GenerateContentResponse:
        found = await asyncio.to_thread(judge_endpoints.ask_one, served.control.judges, name, asked.to_json())
        return GenerateContentResponse.read(found)

    return here if deployed is not None else elsewhere


ROUTES = [
    route
    for slash, note in (("", ""), ("/", ", as the vertexai client writes the path"))
    for route in (
        Route(
            "POST", f"{PLACE}{slash}:evaluateDataset", evaluate_dataset, EVALUATE_DATASET,
            f"Score the answers in a file, or those of models that are asked its rows{note}", EvaluateDatasetRequest,
        ),
        Route(
            "POST", f"{PLACE}{slash}:evaluateInstances", evaluate_instances, EVALUATE_INSTANCES,
            f"Score answers that stand in the request{note}", EvaluateInstancesRequest, EvaluateInstancesResponse,
        ),
    )
]  # fmt: skip
