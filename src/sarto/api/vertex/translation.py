"""translateText of the translation API, v3, by the translation model or a tuned one."""

from __future__ import annotations

import asyncio
from typing import cast

from pydantic import Field
from starlette.requests import Request

from sarto.api.http.requests import read_message, until_gone
from sarto.api.http.responses import Reply, reply
from sarto.api.http.routing import PROMPT_BYTES, Route
from sarto.api.http.services import in_thread, principal, services
from sarto.api.vertex.generation import find_target
from sarto.control.access import authorization
from sarto.conversations.examples import translation_prompt
from sarto.conversations.languages import LANGUAGES
from sarto.errors import FieldViolation, InvalidArgument
from sarto.names import ResourceName, check_id, check_location, check_project
from sarto.schema.generation import Content, GenerateContentRequest, GenerationConfig, Part
from sarto.schema.wire import Message, Struct, Text
from sarto.serving.generator import Target, collect

BASE_MODEL = "translation-llm-002"
GENERAL = "general/translation-llm"
CUSTOM = "translation-llm-custom/"
PERMISSION = "cloudtranslate.generalModels.predict"
MOST_TEXTS = 1024
MOST_CHARACTERS = 30_000
MAX_OUTPUT_TOKENS = 1024
AT_ONCE = 16


class TranslateTextRequest(Message):
    """`model` is `projects/P/locations/L/models/general/translation-llm`, or `…/models/translation-llm-custom/ID`."""

    contents: list[Text] = Field(default_factory=list)
    mime_type: Text = ""
    source_language_code: Text = ""
    target_language_code: Text = ""
    parent: Text = ""
    model: Text = ""
    glossary_config: Struct | None = None
    transliteration_config: Struct | None = None
    labels: dict[str, Text] = Field(default_factory=dict)


class Translation(Message):
    translated_text: Text = ""
    model: Text = ""


class TranslateTextResponse(Message):
    translations: list[Translation] = Field(default_factory=list)


async def translate_text(request: Request) -> Reply:
    body = await read_message(request, TranslateTextRequest)
    source, target_language = _check(body)
    values = request.path_params
    project, location = check_project(values["project"]), check_location(values.get("location", "global"))
    await in_thread(request, authorization.require, services(request).database, principal(request), PERMISSION, project)
    name, shown = _model(body.model, project, location)
    _, target = await in_thread(request, find_target, request, name)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(text: str) -> Translation:
        async with gate:
            prompt = translation_prompt(source, text, target_language)
            return Translation(translated_text=await _translated(request, target, prompt), model=shown)

    answers = await until_gone(request, asyncio.gather(*map(one, body.contents)))
    return reply(TranslateTextResponse(translations=cast("list[Translation]", list(answers))))


async def _translated(request: Request, target: Target, prompt: str) -> str:
    generate_request = GenerateContentRequest(
        contents=[Content(role="user", parts=[Part(text=prompt)])],
        generation_config=GenerationConfig(temperature=0.0, max_output_tokens=MAX_OUTPUT_TOKENS),
    )
    whole = await collect(services(request).generator.generate(target, generate_request))
    content = whole.candidates[0].content if whole.candidates else None
    return "".join(part.text or "" for part in content.parts).strip() if content else ""


def _check(body: TranslateTextRequest) -> tuple[str, str]:
    """The names of both languages. Raises InvalidArgument with every fault."""
    faults: list[FieldViolation] = []
    if not body.contents:
        faults.append(FieldViolation("contents", "Required field is not set."))
    if len(body.contents) > MOST_TEXTS:
        faults.append(FieldViolation("contents", f"At most {MOST_TEXTS} texts; this has {len(body.contents)}."))
    if sum(map(len, body.contents)) > MOST_CHARACTERS:
        faults.append(FieldViolation("contents", f"At most {MOST_CHARACTERS} characters in all."))
    if body.mime_type not in ("", "text/plain", "text/html"):
        faults.append(FieldViolation("mime_type", f'"{body.mime_type}" is neither text/plain nor text/html.'))
    for field, value in (
        ("glossary_config", body.glossary_config),
        ("transliteration_config", body.transliteration_config),
    ):
        if value is not None:
            faults.append(FieldViolation(field, "Not supported on this server."))
    codes = {"source_language_code": body.source_language_code, "target_language_code": body.target_language_code}
    for field, code in codes.items():
        if not code:
            faults.append(FieldViolation(field, "Required field is not set; languages are not detected here."))
        elif _language(code) is None:
            faults.append(FieldViolation(field, f'"{code}" is not a known language code.'))
    if faults:
        raise InvalidArgument.of(faults)
    return _language(body.source_language_code) or "", _language(body.target_language_code) or ""


def _language(code: str) -> str | None:
    """The English name of a BCP-47 code; with its region if the table has it."""
    return LANGUAGES.get(code.lower()) or LANGUAGES.get(code.lower().partition("-")[0])


def _model(model: str, project: str, location: str) -> tuple[str, str]:
    """The resource that generates, and the model's name in the response. Raises InvalidArgument."""
    _, models, plain = model.rpartition("/models/") if "/models/" in model else model.rpartition("/model/")
    plain = plain if models else model
    if plain in ("", GENERAL):
        shown = f"projects/{project}/locations/{location}/models/{GENERAL}"
        return f"projects/{project}/locations/{location}/publishers/google/models/{BASE_MODEL}", shown
    if plain.startswith(CUSTOM):
        identifier, _, version = plain.removeprefix(CUSTOM).partition("@")
        name = ResourceName(project, location, "models", check_id(identifier), version)
        return str(name), f"projects/{project}/locations/{location}/models/{plain}"
    raise InvalidArgument.field("model", f'"{model}" is unknown; use models/{GENERAL} or models/{CUSTOM}ID.')


ROUTES = [
    Route(
        "POST", f"/v3/projects/{{project}}{place}:translateText", translate_text, PERMISSION,
        "Translate texts", TranslateTextRequest, TranslateTextResponse, body_bytes=PROMPT_BYTES,
    )
    for place in ("", "/locations/{location}")
]  # fmt: skip
