"""Every URL of the service in one list: method, path, handler, permission, summary. `/{api}/` is /v1/ and /v1beta1/.

The permission is what the control function behind the handler asks for; the API description is made from this list.
"""

from __future__ import annotations

from sarto.api import (
    audit,
    batch_predictions,
    datasets,
    endpoints,
    evaluations,
    experiments,
    gcs,
    generation,
    keys,
    locations,
    meta,
    metrics,
    models,
    openai,
    operations,
    policies,
    projects,
    publisher_models,
    quotas,
    service_accounts,
    tokens,
    translation,
    tuning_jobs,
    unbuilt,
    webhooks,
)
from sarto.api.projects import ProjectMessage
from sarto.api.routing import PUBLIC, SIGNED_IN, Route
from sarto.control.dataset_checks import DatasetCheck
from sarto.schema.batch_predictions import BatchPredictionJob, ListBatchPredictionJobsResponse
from sarto.schema.generation import (
    CountTokensRequest,
    CountTokensResponse,
    GenerateContentRequest,
    GenerateContentResponse,
)
from sarto.schema.models import Endpoint, ExportModelRequest, Model
from sarto.schema.tuning_jobs import ListTuningJobsResponse, RebaseTunedModelRequest, TuningJob

LOCATION = "/{api}/projects/{project}/locations/{location}"
JOB = f"{LOCATION}/tuningJobs/{{job}}"
ENDPOINT = f"{LOCATION}/endpoints/{{endpoint}}"
MODEL = f"{LOCATION}/models/{{model}}"
PUBLISHER_MODEL = f"{LOCATION}/publishers/{{publisher}}/models/{{model}}"
METADATA = "/computeMetadata/v1"
PAGE = ("page_size", "page_token")
OAUTH = "OAuthError"
LIST = (*PAGE, "filter", "order_by", "read_mask")

ABOUT = [
    Route("GET", "/", meta.root, PUBLIC, "The API page", response="text/html", query=None),
    Route("GET", "/healthz", meta.healthy, PUBLIC, "Whether the process answers"),
    Route("GET", "/readyz", meta.ready, PUBLIC, "Whether the database answers too"),
    Route("GET", "/openapi.json", meta.openapi, PUBLIC, "This description"),
    Route("GET", "/docs", meta.docs, PUBLIC, "A page that shows this description", response="text/html"),
]
WHO = [
    Route("POST", "/token", tokens.token, PUBLIC, "Exchange a signed assertion for an access token", errors=OAUTH),
    Route(
        "POST", "/sts/token", tokens.exchange, PUBLIC, "Exchange an external token for an access token", errors=OAUTH
    ),
    Route("GET", "/oauth2/v3/certs", tokens.certificates, PUBLIC, "Public keys of identity tokens"),
    Route("GET", METADATA, tokens.metadata, PUBLIC, "Metadata server", response="application/text", query=None),
    Route(
        "GET", f"{METADATA}/{{path=**}}", tokens.metadata, PUBLIC, "Metadata server",
        response="application/text", query=None,
    ),
    Route(
        "POST", "/v3/projects", projects.create, "resourcemanager.projects.create", "Create a project",
        ProjectMessage, ProjectMessage,
    ),
    Route("GET", "/v3/projects", projects.list_, SIGNED_IN, "List the projects you may see", query=PAGE),
    Route(
        "GET", "/v3/projects/{project}", projects.get, "resourcemanager.projects.get", "Get a project",
        response=ProjectMessage,
    ),
]  # fmt: skip
TUNING = [
    Route(
        "POST", f"{LOCATION}/tuningJobs", tuning_jobs.create, "aiplatform.tuningJobs.create",
        "Create a tuning job; it starts at once", TuningJob, TuningJob, ("request_id",),
    ),
    Route(
        "GET", f"{LOCATION}/tuningJobs", tuning_jobs.list_, "aiplatform.tuningJobs.list",
        "List tuning jobs, newest first; location - lists all", response=ListTuningJobsResponse, query=LIST,
    ),
    Route("GET", JOB, tuning_jobs.get, "aiplatform.tuningJobs.get", "Get a tuning job", response=TuningJob),
    Route("DELETE", JOB, tuning_jobs.delete, "aiplatform.tuningJobs.delete", "Delete the record of an ended job"),
    Route(
        "POST", f"{JOB}:cancel", tuning_jobs.cancel, "aiplatform.tuningJobs.cancel",
        "Cancel a tuning job; no change when it has ended", {"type": "object"},
    ),
    Route(
        "POST", f"{JOB}:wait", tuning_jobs.wait, "aiplatform.tuningJobs.get",
        "Wait until a tuning job has ended, five minutes at most", {"type": "object"}, TuningJob,
    ),
    Route(
        "POST", f"{LOCATION}/tuningJobs:rebaseTunedModel", tuning_jobs.rebase, "aiplatform.tuningJobs.create",
        "Tune again on another base model, with the recorded data", RebaseTunedModelRequest,
    ),
    Route(
        "GET", f"{JOB}/evaluation", tuning_jobs.evaluation, "storage.objects.get",
        "The evaluation report of a job; alt=html gives a page", query=("alt",),
    ),
    Route(
        "GET", f"{JOB}/events", tuning_jobs.list_events, "aiplatform.tuningJobs.get",
        "What happened to a job, oldest first; as server-sent events for a client that accepts those",
        query=(*PAGE, "with_job"),
    ),
]  # fmt: skip
WEBHOOK = f"{LOCATION}/webhooks/{{webhook}}"
WEBHOOKS = [
    Route(
        "POST", f"{LOCATION}/webhooks", webhooks.create, "aiplatform.webhooks.create",
        "Have new states of tuning jobs told to a URL; the secret is answered this once",
        webhooks.WebhookMessage, webhooks.WebhookMessage,
    ),
    Route(
        "GET", f"{LOCATION}/webhooks", webhooks.list_, "aiplatform.webhooks.list", "List webhooks, oldest first",
        query=PAGE,
    ),
    Route(
        "GET", WEBHOOK, webhooks.get, "aiplatform.webhooks.get", "Get a webhook", response=webhooks.WebhookMessage
    ),
    Route("DELETE", WEBHOOK, webhooks.delete, "aiplatform.webhooks.delete", "Delete a webhook"),
    Route(
        "GET", f"{WEBHOOK}/deliveries", webhooks.list_deliveries, "aiplatform.webhooks.get",
        "What was told to a webhook, newest first", query=PAGE,
    ),
]  # fmt: skip
DATA = [
    Route(
        "POST", f"{LOCATION}:checkDataset", datasets.check, "aiplatform.tuningJobs.create",
        "The report on a dataset, without tuning on it", DatasetCheck,
    ),
    Route(
        "POST", f"{LOCATION}:showExample", datasets.show, "aiplatform.tuningJobs.create",
        "One row of a dataset as training and serving see it", DatasetCheck,
    ),
    Route(
        "GET", f"{JOB}/dataReport", datasets.report_of_job, "aiplatform.tuningJobs.get",
        "The report on a job's data, once its run has read it",
    ),
    Route(
        "GET", f"{JOB}:showExample", datasets.show_of_job, "storage.objects.get",
        "One row of a job's data as training and serving see it", query=("row",),
    ),
]  # fmt: skip
REGISTRY = [
    Route(
        "GET", f"{LOCATION}/models", models.list_, "aiplatform.models.list", "List tuned models, newest first",
        response=models.ListModelsResponse, query=LIST,
    ),
    Route("GET", MODEL, models.get, "aiplatform.models.get", "Get a model, or a version after @", response=Model),
    Route(
        "PATCH", MODEL, models.update, "aiplatform.models.update",
        "Change display name, description, labels or default checkpoint", Model, Model, ("update_mask",),
    ),
    Route("DELETE", MODEL, models.delete, "aiplatform.models.delete", "Delete a model with its versions and endpoints"),
    Route(
        "GET", f"{MODEL}:listVersions", models.list_versions, "aiplatform.models.get", "List a model's versions",
        response=models.ListModelsResponse, query=LIST,
    ),
    Route(
        "GET", f"{MODEL}:listCheckpoints", models.list_checkpoints, "aiplatform.models.get",
        "List the checkpoints of a version", query=PAGE,
    ),
    Route("DELETE", f"{MODEL}:deleteVersion", models.delete_version, "aiplatform.models.delete", "Delete a version"),
    Route(
        "POST", f"{MODEL}:mergeVersionAliases", models.merge_version_aliases, "aiplatform.models.update",
        "Give a version aliases, or take them", models.MergeVersionAliasesRequest, Model,
    ),
    Route(
        "POST", f"{MODEL}:export", models.export, "aiplatform.models.export",
        "Write a model to a bucket: adapter, merged-safetensors, gguf-f16 or gguf-q8-0", ExportModelRequest,
    ),
    Route(
        "GET", f"{LOCATION}/endpoints", endpoints.list_, "aiplatform.endpoints.list", "List endpoints, newest first",
        response=endpoints.ListEndpointsResponse, query=LIST,
    ),
    Route(
        "POST", f"{LOCATION}/endpoints", endpoints.create, "aiplatform.endpoints.create",
        "Make an endpoint that nothing is deployed on yet", Endpoint, query=("endpoint_id",),
    ),
    Route(
        "PATCH", ENDPOINT, endpoints.update, "aiplatform.endpoints.update",
        "Change display name, description or labels", Endpoint, Endpoint, ("update_mask",),
    ),
    Route(
        "POST", f"{ENDPOINT}:deployModel", endpoints.deploy_model, "aiplatform.endpoints.deploy",
        "Have an empty endpoint answer as a tuned model, at one of its checkpoints", endpoints.DeployModelRequest,
    ),
    Route("GET", ENDPOINT, endpoints.get, "aiplatform.endpoints.get", "Get an endpoint", response=Endpoint),
    Route(
        "DELETE", ENDPOINT, endpoints.delete, "aiplatform.endpoints.delete",
        "Delete an endpoint on which nothing is deployed",
    ),
    Route(
        "POST", f"{ENDPOINT}:undeployModel", endpoints.undeploy_model, "aiplatform.endpoints.undeploy",
        "Take the model off an endpoint", endpoints.UndeployModelRequest,
    ),
]  # fmt: skip
OPERATIONS = [
    route
    for about in (LOCATION, JOB, MODEL, ENDPOINT, f"{LOCATION}/batchPredictionJobs/{{job}}")
    for route in (
        Route(
            "GET", f"{about}/operations", operations.list_, "aiplatform.operations.list", "List operations",
            query=(*PAGE, "filter"),
        ),
        Route(
            "GET", f"{about}/operations/{{operation}}", operations.get, "aiplatform.operations.get",
            "Get an operation",
        ),
        Route(
            "DELETE", f"{about}/operations/{{operation}}", operations.delete, "aiplatform.operations.delete",
            "Forget an operation",
        ),
        Route(
            "POST", f"{about}/operations/{{operation}}:wait", operations.wait, "aiplatform.operations.get",
            "Wait until an operation is done", {"type": "object"}, query=("timeout",),
        ),
        Route(
            "POST", f"{about}/operations/{{operation}}:cancel", operations.cancel, "aiplatform.operations.cancel",
            "Cancel an operation; no change when it is done", {"type": "object"},
        ),
    )
]  # fmt: skip
STORE = f"{LOCATION}/metadataStores/{{store}}"
BOARD = f"{LOCATION}/tensorboards/{{tensorboard}}"
RUN = f"{BOARD}/experiments/{{experiment}}/runs/{{run}}"
EXPERIMENTS = [
    Route(
        "GET", f"{LOCATION}/metadataStores", experiments.list_stores, SIGNED_IN, "List metadata stores: there is one",
        query=PAGE,
    ),
    Route("GET", STORE, experiments.get_store, SIGNED_IN, "Get the metadata store"),
    Route(
        "GET", f"{STORE}/contexts", experiments.list_contexts, "aiplatform.contexts.list",
        "List experiments and their runs", query=LIST,
    ),
    Route(
        "GET", f"{STORE}/contexts/{{context}}", experiments.get_context, "aiplatform.contexts.get",
        "Get an experiment or its run",
    ),
    Route(
        "GET", f"{STORE}/executions", experiments.list_executions, "aiplatform.executions.list", "List executions",
        query=LIST,
    ),
    Route(
        "GET", f"{STORE}/artifacts", experiments.list_artifacts, "aiplatform.artifacts.list",
        "List the artifacts that lead to TensorBoard runs", query=LIST,
    ),
    Route(
        "GET", f"{STORE}/artifacts/{{artifact}}", experiments.get_artifact, "aiplatform.artifacts.get",
        "Get the artifact that leads to a TensorBoard run",
    ),
    Route(
        "GET", f"{LOCATION}/tensorboards", experiments.list_tensorboards, "aiplatform.tensorboards.list",
        "List TensorBoards: a project has one", query=LIST,
    ),
    Route("GET", BOARD, experiments.get_tensorboard, "aiplatform.tensorboards.get", "Get the project's TensorBoard"),
    Route(
        "GET", f"{BOARD}:batchRead", experiments.batch_read, "aiplatform.tensorboardTimeSeries.read",
        "Read several time series", query=("time_series",),
    ),
    Route(
        "GET", f"{BOARD}/experiments", experiments.list_tensorboard_experiments,
        "aiplatform.tensorboardExperiments.list", "List TensorBoard experiments, newest first", query=LIST,
    ),
    Route(
        "GET", f"{BOARD}/experiments/{{experiment}}", experiments.get_experiment,
        "aiplatform.tensorboardExperiments.get", "Get a TensorBoard experiment",
    ),
    Route(
        "GET", f"{BOARD}/experiments/{{experiment}}/runs", experiments.list_runs, "aiplatform.tensorboardRuns.list",
        "List the runs of an experiment: it has one", query=LIST,
    ),
    Route("GET", RUN, experiments.get_run, "aiplatform.tensorboardRuns.get", "Get a TensorBoard run"),
    Route(
        "GET", f"{RUN}/timeSeries", experiments.list_time_series, "aiplatform.tensorboardTimeSeries.list",
        "List the metrics of a run", query=LIST,
    ),
    Route(
        "GET", f"{RUN}/timeSeries/{{series}}", experiments.get_time_series, "aiplatform.tensorboardTimeSeries.get",
        "Get a metric of a run",
    ),
    Route(
        "GET", f"{RUN}/timeSeries/{{series}}:read", experiments.read_time_series,
        "aiplatform.tensorboardTimeSeries.read", "Every point of a metric", query=("max_data_points", "filter"),
    ),
]  # fmt: skip
GENERATION = [
    route
    for target in (ENDPOINT, MODEL, PUBLISHER_MODEL)
    for route in (
        Route(
            "POST", f"{target}:generateContent", generation.generate_content, "aiplatform.endpoints.predict",
            "Generate content", GenerateContentRequest, GenerateContentResponse,
        ),
        Route(
            "POST", f"{target}:streamGenerateContent", generation.stream_generate_content,
            "aiplatform.endpoints.predict", "Generate content piece by piece; alt=sse gives events, else one array",
            GenerateContentRequest, ("text/event-stream", {"type": "array"}), ("alt",),
        ),
        Route(
            "POST", f"{target}:countTokens", generation.count_tokens, "aiplatform.endpoints.predict",
            "Count the tokens of a request", CountTokensRequest, CountTokensResponse,
        ),
        Route(
            "POST", f"{target}:computeTokens", generation.compute_tokens, "aiplatform.endpoints.predict",
            "The tokens of a request", {"type": "object"},
        ),
        Route(
            "POST", f"{target}:predict", generation.predict, "aiplatform.endpoints.predict",
            "Refused: says which method answers", {"type": "object"},
        ),
        Route(
            "POST", f"{target}:rawPredict", generation.predict, "aiplatform.endpoints.predict",
            "Refused: says which method answers", {"type": "object"},
        ),
    )
]  # fmt: skip
PUBLISHERS = [
    Route(
        "GET", PUBLISHER_MODEL, publisher_models.get_in_project, "aiplatform.publisherModels.get",
        "Get a base model, asked in a project", query=("view", "language_code", "is_hugging_face_model"),
    ),
    Route(
        "GET", "/{api}/publishers/{publisher}/models", publisher_models.list_, SIGNED_IN, "List base models",
        query=(*LIST, "view", "language_code", "list_all_versions"),
    ),
    Route(
        "GET", "/{api}/publishers/{publisher}/models/{model}", publisher_models.get, SIGNED_IN, "Get a base model",
        query=("view", "language_code", "is_hugging_face_model"),
    ),
]  # fmt: skip
BATCH = f"{LOCATION}/batchPredictionJobs/{{job}}"
BATCHES = [
    Route(
        "POST", f"{LOCATION}/batchPredictionJobs", batch_predictions.create,
        "aiplatform.batchPredictionJobs.create", "Create a batch prediction job",
        BatchPredictionJob, BatchPredictionJob,
    ),
    Route(
        "GET", f"{LOCATION}/batchPredictionJobs", batch_predictions.list_, "aiplatform.batchPredictionJobs.list",
        "List batch prediction jobs, newest first", response=ListBatchPredictionJobsResponse, query=LIST,
    ),
    Route(
        "GET", BATCH, batch_predictions.get, "aiplatform.batchPredictionJobs.get", "Get a batch prediction job",
        response=BatchPredictionJob,
    ),
    Route(
        "DELETE", BATCH, batch_predictions.delete, "aiplatform.batchPredictionJobs.delete",
        "Delete the record of an ended batch prediction job",
    ),
    Route(
        "POST", f"{BATCH}:cancel", batch_predictions.cancel, "aiplatform.batchPredictionJobs.cancel",
        "Cancel a batch prediction job", {"type": "object"},
    ),
]  # fmt: skip
TRANSLATION = [
    Route(
        "POST", f"/v3/projects/{{project}}{place}:translateText", translation.translate_text, translation.PERMISSION,
        "Translate texts", translation.TranslateTextRequest, translation.TranslateTextResponse,
    )
    for place in ("", "/locations/{location}")
]  # fmt: skip

ROUTES: list[Route] = [
    *ABOUT, *WHO, *quotas.ROUTES, *metrics.ROUTES, *locations.ROUTES,
    *audit.ROUTES, *policies.ROUTES, *service_accounts.ROUTES, *evaluations.ROUTES,
    *TUNING, *WEBHOOKS, *DATA, *REGISTRY, *OPERATIONS, *EXPERIMENTS, *GENERATION, *PUBLISHERS, *BATCHES,
    *TRANSLATION, *unbuilt.ROUTES, *keys.ROUTES, *openai.ROUTES, *gcs.ROUTES,
]  # fmt: skip
