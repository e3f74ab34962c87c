"""The route table: every URL of the service. Each module of handlers ends with its routes; here they come together.

A route has a method, a path (`/{api}/` is /v1/ and /v1beta1/), a handler, the permission that the control function
behind the handler checks, and a summary. The API description and `docs/routes.md` are generated from this table.
"""

from __future__ import annotations

from sarto.api import audit_log, kms
from sarto.api.about import prometheus, service
from sarto.api.gcs import routes as storage
from sarto.api.http.routing import Route
from sarto.api.iam import api_keys, policies, projects, service_accounts, tokens
from sarto.api.openai import routes as openai
from sarto.api.vertex import (
    batch_predictions,
    datasets,
    endpoints,
    evaluations,
    experiments,
    generation,
    locations,
    models,
    operations,
    publisher_models,
    quotas,
    translation,
    tuning_jobs,
    unimplemented,
    webhooks,
)

ROUTES: list[Route] = [
    *service.ROUTES, *tokens.ROUTES, *projects.ROUTES, *quotas.ROUTES, *prometheus.ROUTES, *locations.ROUTES,
    *audit_log.ROUTES, *policies.ROUTES, *service_accounts.ROUTES, *api_keys.ROUTES, *evaluations.ROUTES,
    *tuning_jobs.ROUTES, *webhooks.ROUTES, *datasets.ROUTES, *models.ROUTES, *endpoints.ROUTES, *operations.ROUTES,
    *experiments.ROUTES, *generation.ROUTES, *publisher_models.ROUTES, *batch_predictions.ROUTES,
    *translation.ROUTES, *unimplemented.ROUTES, *kms.ROUTES, *openai.ROUTES, *storage.ROUTES,
]  # fmt: skip
