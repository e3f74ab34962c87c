"""Documented methods that are not implemented, each refused by its official name, because a 404 would claim that it
does not exist.

They are of the services around tuning: tuning, models, endpoints, prediction, metadata, TensorBoard, evaluation, caches
and translation. A test compares the list with the official client's own.
"""

from __future__ import annotations

from contextlib import suppress

from starlette.requests import Request

from sarto.api.http.requests import read_body
from sarto.api.http.responses import Reply
from sarto.api.http.routing import LOCATION, PUBLISHER_MODEL, SIGNED_IN, Handler, Route
from sarto.errors import PayloadTooLarge, Unimplemented

STORE, BOARD = f"{LOCATION}/metadataStores/{{store}}", f"{LOCATION}/tensorboards/{{tensorboard}}"
EXPERIMENT = f"{BOARD}/experiments/{{experiment}}"
RUN = f"{EXPERIMENT}/runs/{{run}}"
EVALUATIONS = f"{LOCATION}/models/{{model}}/evaluations"
SLICES = f"{EVALUATIONS}/{{evaluation}}/slices"
READ_ONLY = "Experiments here are those of tuning jobs, and read only; leave `experiment` out of vertexai.init."
COME_FROM_JOBS = "Models come from tuning jobs."
PREDICT = "Use :generateContent or :streamGenerateContent."
EVALUATED = "Give the tuning job an evaluationConfig, or call `:evaluateDataset`."
TRANSLATE = "Only translateText is implemented."
Group = tuple[str, str, str, dict[str, str]]
"""Service, alternative, the prefix of the paths, and by name each method's verb and the rest of its path."""

GROUPS: tuple[Group, ...] = (
    ("GenAiTuningService", "Tune a model instead, with supervisedTuningSpec.", LOCATION, {
        "OptimizePrompt": "POST /tuningJobs:optimizePrompt",
    }),
    ("ModelService", COME_FROM_JOBS, f"{LOCATION}/models", {
        "UploadModel": "POST :upload",
        "CopyModel": "POST :copy",
        "UpdateExplanationDataset": "POST /{model}:updateExplanationDataset",
    }),
    ("ModelService", COME_FROM_JOBS, LOCATION, {"RecommendSpec": "POST :recommendSpec"}),
    ("ModelService", EVALUATED, EVALUATIONS, {
        "ImportModelEvaluation": "POST :import",
        "ListModelEvaluations": "GET ",
        "GetModelEvaluation": "GET /{evaluation}",
    }),
    ("ModelService", EVALUATED, SLICES, {
        "BatchImportModelEvaluationSlices": "POST :batchImport",
        "ListModelEvaluationSlices": "GET ",
        "GetModelEvaluationSlice": "GET /{slice}",
        "BatchImportEvaluatedAnnotations": "POST /{slice}:batchImport",
    }),
    ("EvaluationService", EVALUATED, LOCATION, {
        "GenerateInstanceRubrics": "POST :generateInstanceRubrics",
    }),
    ("EndpointService", "Use :deployModel, :undeployModel and PATCH.", f"{LOCATION}/endpoints", {
        "UpdateEndpointLongRunning": "POST /{endpoint}:update",
        "MutateDeployedModel": "POST /{endpoint}:mutateDeployedModel",
    }),
    *(
        ("PredictionService", PREDICT, f"{LOCATION}{target}", {
            "DirectPredict": "POST :directPredict",
            "DirectRawPredict": "POST :directRawPredict",
            "StreamRawPredict": "POST :streamRawPredict",
            "ServerStreamingPredict": "POST :serverStreamingPredict",
            "PredictLongRunning": "POST :predictLongRunning",
            "FetchPredictOperation": "POST :fetchPredictOperation",
            "Explain": "POST :explain",
            "EmbedContent": "POST :embedContent",
        })
        for target in ("/endpoints/{endpoint}", "/publishers/{publisher}/models/{model}")
    ),
    *(
        ("PredictionService", "Names without a project go with API keys; use the name in its project.", target, {
            "GenerateContent": "POST :generateContent",
            "StreamGenerateContent": "POST :streamGenerateContent",
            "CountTokens": "POST :countTokens",
            "ComputeTokens": "POST :computeTokens",
        })
        for target in ("/{api}/endpoints/{endpoint}", "/{api}/publishers/{publisher}/models/{model}")
    ),
    ("EndpointService", "Base models are set in catalog.toml.", PUBLISHER_MODEL, {
        "SetPublisherModelConfig": "POST :setPublisherModelConfig",
        "FetchPublisherModelConfig": "GET :fetchPublisherModelConfig",
        "ExportPublisherModel": "POST :export",
    }),
    ("ModelGardenService", "`sarto models pull` fetches base models.", LOCATION, {
        "Deploy": "POST :deploy",
        "DeployPublisherModel": "POST :deployPublisherModel",
    }),
    ("ModelGardenService", "`sarto models pull` fetches base models.", "/{api}/projects/{project}/modelGardenEula", {
        "AcceptPublisherModelEula": "POST :accept",
        "CheckPublisherModelEulaAcceptance": "POST :check",
    }),
    ("MetadataService", READ_ONLY, f"{LOCATION}/metadataStores", {
        "CreateMetadataStore": "POST ",
        "DeleteMetadataStore": "DELETE /{store}",
    }),
    ("MetadataService", READ_ONLY, STORE, {
        "CreateContext": "POST /contexts",
        "UpdateContext": "PATCH /contexts/{context}",
        "DeleteContext": "DELETE /contexts/{context}",
        "PurgeContexts": "POST /contexts:purge",
        "AddContextArtifactsAndExecutions": "POST /contexts/{context}:addContextArtifactsAndExecutions",
        "AddContextChildren": "POST /contexts/{context}:addContextChildren",
        "RemoveContextChildren": "POST /contexts/{context}:removeContextChildren",
        "QueryContextLineageSubgraph": "GET /contexts/{context}:queryContextLineageSubgraph",
        "CreateArtifact": "POST /artifacts",
        "UpdateArtifact": "PATCH /artifacts/{artifact}",
        "DeleteArtifact": "DELETE /artifacts/{artifact}",
        "PurgeArtifacts": "POST /artifacts:purge",
        "QueryArtifactLineageSubgraph": "GET /artifacts/{artifact}:queryArtifactLineageSubgraph",
        "CreateExecution": "POST /executions",
        "GetExecution": "GET /executions/{execution}",
        "UpdateExecution": "PATCH /executions/{execution}",
        "DeleteExecution": "DELETE /executions/{execution}",
        "PurgeExecutions": "POST /executions:purge",
        "AddExecutionEvents": "POST /executions/{execution}:addExecutionEvents",
        "QueryExecutionInputsAndOutputs": "GET /executions/{execution}:queryExecutionInputsAndOutputs",
        "CreateMetadataSchema": "POST /metadataSchemas",
        "GetMetadataSchema": "GET /metadataSchemas/{schema}",
        "ListMetadataSchemas": "GET /metadataSchemas",
    }),
    ("TensorboardService", READ_ONLY, f"{LOCATION}/tensorboards", {"CreateTensorboard": "POST "}),
    ("TensorboardService", READ_ONLY, BOARD, {
        "UpdateTensorboard": "PATCH ",
        "DeleteTensorboard": "DELETE ",
        "ReadTensorboardUsage": "GET :readUsage",
        "ReadTensorboardSize": "GET :readSize",
        "CreateTensorboardExperiment": "POST /experiments",
    }),
    ("TensorboardService", READ_ONLY, EXPERIMENT, {
        "UpdateTensorboardExperiment": "PATCH ",
        "DeleteTensorboardExperiment": "DELETE ",
        "WriteTensorboardExperimentData": "POST :write",
        "BatchCreateTensorboardTimeSeries": "POST :batchCreate",
        "CreateTensorboardRun": "POST /runs",
        "BatchCreateTensorboardRuns": "POST /runs:batchCreate",
    }),
    ("TensorboardService", READ_ONLY, RUN, {
        "UpdateTensorboardRun": "PATCH ",
        "DeleteTensorboardRun": "DELETE ",
        "WriteTensorboardRunData": "POST :write",
        "CreateTensorboardTimeSeries": "POST /timeSeries",
        "UpdateTensorboardTimeSeries": "PATCH /timeSeries/{series}",
        "DeleteTensorboardTimeSeries": "DELETE /timeSeries/{series}",
        "ReadTensorboardBlobData": "GET /timeSeries/{series}:readBlobData",
        "ExportTensorboardTimeSeriesData": "POST /timeSeries/{series}:exportTensorboardTimeSeries",
    }),
    ("GenAiCacheService", "Prompts are cached automatically; send whole prompts.", f"{LOCATION}/cachedContents", {
        "CreateCachedContent": "POST ",
        "ListCachedContents": "GET ",
        "GetCachedContent": "GET /{cache}",
        "UpdateCachedContent": "PATCH /{cache}",
        "DeleteCachedContent": "DELETE /{cache}",
    }),
    ("IAMCredentials", "Sign with a key file of the account.", "/v1/projects/{project}/serviceAccounts/{account}", {
        "SignBlob": "POST :signBlob",
        "SignJwt": "POST :signJwt",
    }),
    *(
        ("TranslationService", TRANSLATE, f"/v3/projects/{{project}}{place}", {
            "DetectLanguage": "POST :detectLanguage",
            "GetSupportedLanguages": "GET /supportedLanguages",
            "RomanizeText": "POST :romanizeText",
        })
        for place in ("", "/locations/{location}")
    ),
    ("TranslationService", TRANSLATE, "/v3/projects/{project}/locations/{location}", {
        "BatchTranslateText": "POST :batchTranslateText",
        "TranslateDocument": "POST :translateDocument",
        "BatchTranslateDocument": "POST :batchTranslateDocument",
        "AdaptiveMtTranslate": "POST :adaptiveMtTranslate",
        "CreateGlossary": "POST /glossaries",
        "ListGlossaries": "GET /glossaries",
        "GetGlossary": "GET /glossaries/{glossary}",
        "DeleteGlossary": "DELETE /glossaries/{glossary}",
        "CreateModel": "POST /models",
        "ListModels": "GET /models",
        "GetModel": "GET /models/{model}",
        "DeleteModel": "DELETE /models/{model}",
    }),
)  # fmt: skip


def _refusal(service: str, name: str, instead: str) -> Handler:
    async def refuse(request: Request) -> Reply:
        with suppress(PayloadTooLarge):  # of no interest
            await read_body(request)
        raise Unimplemented(f"{service}.{name} is not implemented. {instead}")

    return refuse


def _route(service: str, instead: str, base: str, name: str, rule: str) -> Route:
    method, _, rest = rule.partition(" ")
    body = {"type": "object"} if method in ("POST", "PATCH") else None
    summary = f"Refused: {name} is not implemented"
    return Route(method, f"{base}{rest}", _refusal(service, name, instead), SIGNED_IN, summary, body, query=None)


ROUTES = [
    _route(service, instead, base, name, rule)
    for service, instead, base, methods in GROUPS
    for name, rule in methods.items()
]
