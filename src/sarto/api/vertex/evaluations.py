"""evaluateDataset, which returns an operation, and evaluateInstances, which returns the result."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request

from sarto.api.http.requests import beside, parent, read_message, until_gone
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import LOCATION, PROMPT_BYTES, Route
from sarto.api.http.services import in_control, services
from sarto.api.vertex.generation import target_of
from sarto.api.vertex.operations import answer
from sarto.control.evaluation import dataset_evaluations
from sarto.control.evaluation.dataset_evaluations import EVALUATE_DATASET, EVALUATE_INSTANCES
from sarto.control.models.resolution import ResolvedModel
from sarto.control.runs import external_judge
from sarto.schema.evaluation_requests import EvaluateDatasetRequest, EvaluateInstancesRequest, EvaluateInstancesResponse
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse
from sarto.serving.evaluator import Generate
from sarto.serving.generator import collect


async def evaluate_dataset(request: Request) -> Reply:
    body = await read_message(request, EvaluateDatasetRequest)
    return answer(request, await in_control(request, dataset_evaluations.evaluate, parent(request), body))


async def evaluate_instances(request: Request) -> Reply:
    body = await read_message(request, EvaluateInstancesRequest)
    evaluator = services(request).evaluator
    project, body = await in_control(request, dataset_evaluations.with_default_judge, parent(request), body)
    read = await beside(request, partial(evaluator.read, body))
    targets = await in_control(request, dataset_evaluations.judges, parent(request), read.judges)
    judges = {name: judge(request, project, name, deployed) for name, deployed in targets.items()}
    return reply(await until_gone(request, evaluator.scores(read, judges, project)))


def judge(request: Request, project: str, name: str, deployed: ResolvedModel | None) -> Generate:
    """The judge with this name: a model of this server, or one elsewhere."""
    served = services(request)

    async def here(prompt: GenerateContentRequest) -> GenerateContentResponse:
        assert deployed is not None
        return await collect(served.generator.generate(target_of(served.control, deployed), prompt))

    async def elsewhere(prompt: GenerateContentRequest) -> GenerateContentResponse:
        ask = partial(external_judge.ask_one, served.control.judges, name, prompt.to_json())
        return GenerateContentResponse.read(await served.outside.call(project, ask))

    return here if deployed is not None else elsewhere


ROUTES = [
    route
    for slash, note in (("", ""), ("/", ", by the vertexai client's spelling of the path"))
    for route in (
        Route(
            "POST", f"{LOCATION}{slash}:evaluateDataset", evaluate_dataset, EVALUATE_DATASET,
            f"Score the answers in a file, or those of models to its rows{note}", EvaluateDatasetRequest,
        ),
        Route(
            "POST", f"{LOCATION}{slash}:evaluateInstances", evaluate_instances, EVALUATE_INSTANCES,
            f"Score answers in the request{note}", EvaluateInstancesRequest, EvaluateInstancesResponse,
            body_bytes=PROMPT_BYTES,
        ),
    )
]  # fmt: skip
