"""OpenAI's files: uploaded as a form, listed, read and deleted."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.api.gcs.bucket_call import BucketCall, uploaded
from sarto.api.gcs.download import download
from sarto.api.http.responses import reply
from sarto.api.http.routing import Route
from sarto.api.http.services import in_thread, services
from sarto.api.openai import result_files, stored_files
from sarto.api.openai.errors import ERRORS, in_openai_form, refusal
from sarto.api.openai.form_data import FormReader
from sarto.api.openai.place import ROOTS
from sarto.api.openai.reading import page_of
from sarto.api.openai.stored_files import LIST, READ, REMOVE, WRITE, checked, file_json, opened
from sarto.control.models import model_bucket
from sarto.errors import InvalidArgument
from sarto.storage.buckets.blobs import Content
from sarto.storage.buckets.store import StoredObject

MOST_FILES = 10_000


@in_openai_form
async def create(request: Request) -> ASGIApp:
    call = await opened(request, WRITE)
    reader = FormReader(request.headers.get("content-type", ""), "file")
    with await call.run(call.buckets.spool, call.bucket.name) as spool:
        async for block in uploaded(call):
            if data := reader.feed(block):
                await call.run(spool.write, data)
        reader.close()
        purpose = _read_form(reader)
        content = await call.run(spool.finish)
        _check_content(content)
        name, fields = stored_files.new_object(reader.file_name, purpose)
        put, conditions = call.buckets.store, await call.writing()
        stored = await call.run(put, call.bucket.name, name, content, fields, conditions, call.project)
    return reply(file_json(stored))


def _read_form(reader: FormReader) -> str:
    """The purpose. Raises InvalidArgument for other fields."""
    for name in reader.fields:
        if name.startswith("expires_after"):
            raise InvalidArgument.field("expires_after", "Files do not expire here; delete the file when it is used.")
        if name != "purpose":
            raise InvalidArgument.field(name, "This field is not known; send purpose and file.")
    return stored_files.check_purpose(reader.fields.get("purpose"))


def _check_content(content: Content) -> None:
    if content.size == 0:
        raise InvalidArgument.field("file", "The file is empty.")


@in_openai_form
async def list_files(request: Request) -> ASGIApp:
    number = await checked(request, LIST)
    page = page_of(request, MOST_FILES, MOST_FILES, ("purpose", "order"))
    order, purpose = page.more.get("order", "desc"), page.more.get("purpose", "")
    if order not in ("asc", "desc"):
        raise InvalidArgument.field("order", "It is asc or desc.")
    rows = await in_thread(request, _listed, request, number, page.after, page.limit + 1, purpose, order == "asc")
    return reply(page.cut(rows))


def _listed(
    request: Request, number: str, after: str, limit: int, purpose: str, ascending: bool
) -> list[dict[str, Any]]:
    """Files and result files in the order of their numbers, which grow with time."""
    rows: list[dict[str, Any]] = []
    if purpose != result_files.PURPOSE:
        rows += _stored(request, number, after, limit, purpose, ascending)
    if purpose in ("", result_files.PURPOSE):
        rows += result_files.listed(request, after, limit, ascending)
    return sorted(rows, key=lambda row: str(row["id"])[-19:], reverse=not ascending)[:limit]


def _stored(
    request: Request, number: str, after: str, limit: int, purpose: str, ascending: bool
) -> list[dict[str, Any]]:
    served, prefix = services(request), stored_files.PREFIX
    bucket = model_bucket.find_file_bucket(served.control, number)
    name = f"{prefix}{after[-19:]}/" if after else ""
    name += "\U0010ffff" if after and ascending else ""
    rows: list[dict[str, Any]] = []
    while len(rows) < limit:
        found = served.buckets.by_name(bucket, prefix, name, limit, ascending=ascending)
        rows += [file_json(one) for one in found if not purpose or stored_files.purpose_of(one) == purpose]
        if len(found) < limit:
            break
        name = found[-1].name
    return rows[:limit]


@in_openai_form
async def get(request: Request) -> ASGIApp:
    file_id = request.path_params["file"]
    number = await checked(request, READ, file_id)
    if result_files.is_result(file_id):
        return reply(await in_thread(request, result_files.described, request, file_id))
    return reply(file_json(await in_thread(request, stored_files.find, services(request).control, number, file_id)))


@in_openai_form
async def content(request: Request) -> ASGIApp:
    file_id = request.path_params["file"]
    if result_files.is_result(file_id):
        await checked(request, READ, file_id)
        return await result_files.content(request, file_id)
    call = await opened(request, READ, file_id)
    return await download(call, await _found(call, file_id))


@in_openai_form
async def delete(request: Request) -> ASGIApp:
    file_id = request.path_params["file"]
    if result_files.is_result(file_id):
        await checked(request, REMOVE, file_id)
        raise InvalidArgument.field("file_id", "A result file is part of its job and ends with it; delete the job.")
    call = await opened(request, REMOVE, file_id)
    stored = await _found(call, file_id)
    await call.run(call.buckets.delete, stored.bucket, stored.name, project=call.project)
    return reply({"id": file_id, "object": "file", "deleted": True})


async def _found(call: BucketCall, file_id: str) -> StoredObject:
    return await call.run(stored_files.find, services(call.request).control, call.project, file_id)


FORM = "multipart/form-data"
ANY_BYTES = "*/*"
ROUTES = [
    Route(
        method, f"{root}{path}", handler, permission, summary, body, answer,
        query=None, errors=ERRORS, refusal=refusal,
    )
    for root in ROOTS
    for method, path, handler, permission, summary, body, answer in (
        ("POST", "/files", create, WRITE, "Upload a file, in OpenAI's form", FORM, None),
        ("GET", "/files", list_files, LIST, "List files, in OpenAI's form", None, None),
        ("GET", "/files/{file}", get, READ, "A file, in OpenAI's form", None, None),
        ("GET", "/files/{file}/content", content, READ, "The bytes of a file", None, ANY_BYTES),
        ("DELETE", "/files/{file}", delete, REMOVE, "Delete a file, in OpenAI's form", None, None),
    )
]  # fmt: skip
