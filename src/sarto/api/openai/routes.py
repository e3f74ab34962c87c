"""The routes of OpenAI's API."""

from __future__ import annotations

from sarto.api.http.routing import Route
from sarto.api.openai import chat, files, fine_tuning, models, unbuilt, uploads

ROUTES: list[Route] = [
    *chat.ROUTES, *models.ROUTES, *files.ROUTES, *uploads.ROUTES, *fine_tuning.ROUTES, *unbuilt.ROUTES,
]  # fmt: skip
