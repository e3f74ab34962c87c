"""The real google-cloud-storage client against the real service."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.api_core import exceptions
from google.auth.exceptions import InvalidOperation
from google.cloud import storage
from google.cloud.storage import transfer_manager
from google.oauth2.credentials import Credentials

from .storage_server import Server

CHUNK = 256 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("home"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[storage.Client]:
    client = server.client()
    yield client
    client.close()


@pytest.fixture(scope="module")
def bucket(client: storage.Client) -> storage.Bucket:
    return client.create_bucket("conformance", location="us-central1")


def test_upload_and_download_with_metadata(bucket: storage.Bucket) -> None:
    blob = bucket.blob("dir/a b+c&d=é.jsonl")
    blob.metadata = {"task": "summaries"}
    blob.cache_control = "no-store"
    blob.upload_from_string('{"a": 1}\n', content_type="application/jsonl", checksum="crc32c")
    found = bucket.get_blob("dir/a b+c&d=é.jsonl")
    assert found is not None
    assert (found.size, found.content_type, found.metadata) == (9, "application/jsonl", {"task": "summaries"})
    assert (found.cache_control, found.generation, found.md5_hash) == ("no-store", blob.generation, blob.md5_hash)
    assert found.download_as_text() == '{"a": 1}\n'
    assert found.time_created.year >= 2024 and found.updated == found.time_created


@pytest.mark.parametrize("checksum", ["md5", "crc32c"])
@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_resumable_uploads_of_every_size(bucket: storage.Bucket, size: int, checksum: str) -> None:
    data = os.urandom(size)
    known, unknown = bucket.blob("known", chunk_size=CHUNK), bucket.blob("unknown", chunk_size=CHUNK)
    known.upload_from_file(io.BytesIO(data), size=size, checksum=checksum)
    unknown.upload_from_file(io.BytesIO(data), checksum=checksum)
    for blob in (known, unknown):
        assert blob.size == size
        assert bucket.blob(blob.name).download_as_bytes(checksum=checksum) == data


def test_ranges_and_chunked_downloads(bucket: storage.Bucket) -> None:
    data = os.urandom(3 * CHUNK + 7)
    bucket.blob("ranges").upload_from_string(data)
    blob = bucket.blob("ranges")
    assert blob.download_as_bytes(start=5, end=9) == data[5:10]
    assert blob.download_as_bytes(start=len(data) - 3) == data[-3:]
    chunked = bucket.blob("ranges", chunk_size=CHUNK)
    into = io.BytesIO()
    chunked.download_to_file(into)
    assert into.getvalue() == data
    with blob.open("rb", chunk_size=CHUNK) as file:
        file.seek(CHUNK - 1)
        assert file.read(2) == data[CHUNK - 1 : CHUNK + 1]
    with pytest.raises(exceptions.RequestRangeNotSatisfiable):
        blob.download_as_bytes(start=len(data) + 1)


def test_writing_as_a_stream(bucket: storage.Bucket) -> None:
    data = os.urandom(2 * CHUNK + 11)
    with bucket.blob("stream").open("wb", chunk_size=CHUNK) as file:
        file.write(data)
    assert bucket.blob("stream").download_as_bytes() == data


def test_preconditions(bucket: storage.Bucket) -> None:
    blob = bucket.blob("once")
    blob.upload_from_string("1", if_generation_match=0)
    first = blob.generation
    for attempt in (
        lambda: bucket.blob("once").upload_from_string("2", if_generation_match=0),
        lambda: bucket.blob("once", chunk_size=CHUNK).upload_from_file(io.BytesIO(b"2"), if_generation_match=0),
        lambda: bucket.blob("once").upload_from_string("2", if_generation_match=first + 1),
        lambda: bucket.blob("once").delete(if_generation_match=first + 1),
        lambda: bucket.blob("once").download_as_bytes(if_generation_match=first + 1),
        lambda: bucket.blob("once").reload(if_metageneration_match=9),
    ):
        with pytest.raises(exceptions.PreconditionFailed):
            attempt()
    blob.upload_from_string("2", if_generation_match=first)
    assert blob.generation > first
    assert bucket.blob("once").download_as_bytes() == b"2"
    with pytest.raises(exceptions.NotFound):
        bucket.blob("once", generation=first).download_as_bytes()


def test_listing(client: storage.Client, bucket: storage.Bucket) -> None:
    for name in ("list/a", "list/a/b", "list/a/c", "list/d", "list/e/"):
        bucket.blob(name).upload_from_string("x")
    assert [b.name for b in client.list_blobs(bucket, prefix="list/", page_size=2)] == [
        "list/a", "list/a/b", "list/a/c", "list/d", "list/e/",
    ]  # fmt: skip
    listing = client.list_blobs(bucket, prefix="list/", delimiter="/")
    assert [b.name for b in listing] == ["list/a", "list/d"]
    assert listing.prefixes == {"list/a/", "list/e/"}
    with_markers = client.list_blobs(bucket, prefix="list/", delimiter="/", include_trailing_delimiter=True)
    assert [b.name for b in with_markers] == ["list/a", "list/d", "list/e/"]
    window = client.list_blobs(bucket, start_offset="list/a/c", end_offset="list/e")
    assert [b.name for b in window] == ["list/a/c", "list/d"]
    assert len(list(client.list_blobs(bucket, prefix="list/", max_results=3))) == 3


def test_copy_rewrite_compose_move(client: storage.Client, bucket: storage.Bucket) -> None:
    other = client.create_bucket("conformance-other")
    source = bucket.blob("source")
    source.metadata = {"k": "v"}
    source.upload_from_string("part one, ", content_type="text/plain")
    copied = bucket.copy_blob(source, other, "dir/copied")
    assert (copied.content_type, copied.md5_hash, copied.metadata) == ("text/plain", source.md5_hash, {"k": "v"})
    rewritten = other.blob("rewritten")
    token, done, total = rewritten.rewrite(source)
    assert (token, done, total) == (None, 10, 10)
    second = bucket.blob("second")
    second.upload_from_string("part two")
    joined = bucket.blob("joined")
    joined.content_type = "text/plain"
    joined.compose([source, second, second])
    assert (joined.download_as_bytes(), joined.content_type) == (b"part one, part twopart two", "text/plain")
    moved = bucket.move_blob(joined, "moved")
    assert (moved.download_as_bytes()[:4], bucket.get_blob("joined")) == (b"part", None)
    renamed = bucket.rename_blob(moved, "renamed")
    assert bucket.get_blob("moved") is None and renamed.exists()
    other.delete(force=True)
    assert client.lookup_bucket("conformance-other") is None


def test_changing_metadata(bucket: storage.Bucket) -> None:
    blob = bucket.blob("patched")
    blob.metadata = {"a": "1", "b": "2"}
    blob.upload_from_string("x")
    blob.metadata = {"a": None, "c": "3"}
    blob.content_type = "text/markdown"
    blob.patch()
    assert (blob.metadata, blob.metageneration) == ({"b": "2", "c": "3"}, 2)
    blob.metadata = {"only": "this"}
    blob.update()
    assert bucket.get_blob("patched").metadata == {"only": "this"}


def test_bucket_life(client: storage.Client) -> None:
    bucket = client.bucket("conformance-life")
    bucket.labels = {"team": "a"}
    made = client.create_bucket(bucket)
    assert (made.labels, made.location_type, made.project_number > 0) == ({"team": "a"}, "multi-region", True)
    made.labels = {"team": "b"}
    made.patch()
    assert client.get_bucket("conformance-life").labels["team"] == "b"
    assert "conformance-life" in [b.name for b in client.list_buckets(prefix="conformance-l", page_size=1)]
    with pytest.raises(exceptions.Conflict):
        client.create_bucket("conformance-life")
    made.blob("a").upload_from_string("x")
    with pytest.raises(exceptions.Conflict):
        made.delete()
    made.blob("a").delete()
    made.delete()
    with pytest.raises(exceptions.NotFound, match="bucket does not exist"):
        client.get_bucket("conformance-life")
    made = client.bucket("conformance-life")
    made.versioning_enabled = True
    with pytest.raises(exceptions.BadRequest, match="versioning"):
        client.create_bucket(made)


def test_missing_things(client: storage.Client, bucket: storage.Bucket) -> None:
    assert bucket.get_blob("nothing") is None
    with pytest.raises(exceptions.NotFound, match="No such object: conformance/nothing"):
        bucket.blob("nothing").delete()
    with pytest.raises(exceptions.NotFound):
        client.bucket("no-such-bucket-here").blob("a").upload_from_string("x" * 1000)
    with pytest.raises(exceptions.BadRequest, match="Invalid bucket name"):
        client.create_bucket("goog-mine")


def test_transfer_manager_uploads_and_downloads_in_parts(bucket: storage.Bucket, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(12 * CHUNK + 5))
    blob = bucket.blob("in parts/ä")
    workers = {"worker_type": transfer_manager.THREAD, "max_workers": 3}
    transfer_manager.upload_chunks_concurrently(str(source), blob, chunk_size=4 * CHUNK, checksum="md5", **workers)
    transfer_manager.download_chunks_concurrently(blob, str(target), chunk_size=5 * CHUNK, **workers)
    assert target.read_bytes() == source.read_bytes()


def test_gzip_objects_arrive_unpacked_or_as_they_are(bucket: storage.Bucket, server: Server) -> None:
    import gzip

    text = b"line of text\n" * 100_000
    blob = bucket.blob("packed")
    blob.content_encoding = "gzip"
    blob.upload_from_string(gzip.compress(text), content_type="text/plain")
    assert bucket.blob("packed").download_as_bytes() == text
    assert gzip.decompress(bucket.blob("packed").download_as_bytes(raw_download=True)) == text
    with server.http(**{"Accept-Encoding": "identity"}) as http:
        answer = http.get("/download/storage/v1/b/conformance/o/packed?alt=media")
    assert answer.content == text
    assert "content-encoding" not in answer.headers


def test_the_emulator_variable_works_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
    with storage.Client(project="demo", credentials=Credentials(server.token())) as client:
        bucket = client.create_bucket("by-environment")
        bucket.blob("a").upload_from_string("x")
        assert bucket.blob("a").download_as_bytes() == b"x"
    with storage.Client(project="demo") as anonymous, pytest.raises(InvalidOperation):  # 401, and nothing to refresh
        anonymous.get_bucket("by-environment")


def test_one_batch_of_many_calls(client: storage.Client, bucket: storage.Bucket) -> None:
    for number in range(3):
        bucket.blob(f"batch/{number}").upload_from_string("x")
    with client.batch():
        for number in range(3):
            bucket.blob(f"batch/{number}").delete()
    assert not list(client.list_blobs(bucket, prefix="batch/"))
