"""gcsfs, and what stands on it or on google-cloud-storage, against the real service: how many write training data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import smart_open
from google.cloud import storage

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
import gcsfs
import pandas as pd

from .storage_server import Server

ROWS = [{"input_text": f"q{i}", "output_text": f"a{i}"} for i in range(40)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("home"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[storage.Client]:
    client = server.client()
    client.create_bucket("lake")
    yield client
    client.close()


@pytest.fixture(scope="module")
def options(server: Server, client: storage.Client) -> dict[str, Any]:
    return {"project": "demo", "token": client._credentials, "endpoint_url": server.address}


@pytest.fixture(scope="module")
def fs(options: dict[str, Any]) -> gcsfs.GCSFileSystem:
    return gcsfs.GCSFileSystem(**options, skip_instance_cache=True)


def test_a_file_is_written_read_appended_to_and_removed(fs: gcsfs.GCSFileSystem) -> None:
    with fs.open("lake/train.jsonl", "w") as file:
        file.write(LINES)
    assert fs.cat("lake/train.jsonl").decode() == LINES
    fs.touch("lake/empty.jsonl")
    assert fs.info("lake/empty.jsonl")["size"] == 0
    fs.pipe("lake/piped.jsonl", LINES.encode())
    fs.cp("lake/piped.jsonl", "lake/copied.jsonl")
    fs.invalidate_cache()
    assert {"lake/train.jsonl", "lake/empty.jsonl", "lake/copied.jsonl"} <= set(fs.ls("lake"))
    fs.rm("lake/copied.jsonl")
    assert not fs.exists("lake/copied.jsonl")


@pytest.mark.parametrize("size", [0, 1, 2**18, 2**18 + 1, 2**20 + 5])
def test_files_of_every_size_come_in_chunks(fs: gcsfs.GCSFileSystem, size: int) -> None:
    data = os.urandom(size)
    with fs.open("lake/bytes", "wb", block_size=2**18) as file:
        file.write(data)
    assert fs.cat("lake/bytes") == data


def test_a_bucket_is_made_and_removed(fs: gcsfs.GCSFileSystem) -> None:
    fs.mkdir("lake-made-by-gcsfs")
    assert "lake-made-by-gcsfs" in [name.rstrip("/") for name in fs.ls("")]
    fs.rmdir("lake-made-by-gcsfs")


def test_pandas_writes_and_reads_rows(options: dict[str, Any]) -> None:
    pd.DataFrame(ROWS).to_json("gs://lake/frame.jsonl", orient="records", lines=True, storage_options=options)
    assert pd.read_json("gs://lake/frame.jsonl", lines=True, storage_options=options).to_dict("records") == ROWS


def test_smart_open_writes_and_reads_rows(client: storage.Client) -> None:
    with smart_open.open("gs://lake/smart.jsonl", "w", transport_params={"client": client}) as file:
        file.write(LINES)
    with smart_open.open("gs://lake/smart.jsonl", transport_params={"client": client}) as file:
        assert file.read() == LINES


def test_compose_takes_blobs_that_were_never_read(client: storage.Client) -> None:
    bucket = client.bucket("lake")
    for name in ("p1", "p2"):
        bucket.blob(name).upload_from_string(name)
    whole = bucket.blob("whole")
    whole.compose([bucket.blob("p1"), bucket.blob("p2")])
    assert whole.download_as_text() == "p1p2"


@pytest.fixture(scope="module")
def http(server: Server, client: storage.Client) -> Iterator[httpx.Client]:
    client.list_buckets().pages.__next__()  # so that there is a token
    with httpx.Client(
        base_url=server.address, headers={"Authorization": f"Bearer {client._credentials.token}"}
    ) as http:
        yield http


def begin(http: httpx.Client, name: str) -> str:
    begun = http.post("/upload/storage/v1/b/lake/o", params={"uploadType": "resumable", "name": name})
    return begun.headers["location"]


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_session_takes_every_documented_form(http: httpx.Client, method: str) -> None:
    def send(where: str, said: str | None, body: bytes = b"") -> httpx.Response:
        return http.request(method, where, content=body, headers={"Content-Range": said} if said else {})

    where, data = begin(http, "form"), os.urandom(2**18 + 10)
    assert send(where, "bytes */*").status_code == 308
    asked = send(where, f"bytes 0-{2**18 - 1}/*", data[: 2**18])
    assert (asked.status_code, asked.headers["range"]) == (308, f"bytes=0-{2**18 - 1}")
    assert send(where, f"bytes */{len(data)}").headers["range"] == f"bytes=0-{2**18 - 1}"
    done = send(where, f"bytes {2**18}-{len(data) - 1}/{len(data)}", data[2**18 :])
    assert done.status_code == 200 and done.json()["size"] == str(len(data))
    assert send(where, "bytes */*").json()["generation"] == done.json()["generation"]
    for said in ("bytes */0", None):
        empty = send(begin(http, "empty"), said)
        assert empty.status_code == 200 and empty.json()["size"] == "0"
    finished = begin(http, "finished")
    send(finished, f"bytes 0-{2**18 - 1}/*", data[: 2**18])
    assert send(finished, f"bytes */{2**18}").json()["size"] == str(2**18)
    assert send(begin(http, "bad"), "bytes 5-1/3").status_code == 400


@pytest.mark.parametrize("acl, status", [("projectPrivate", 200), ("private", 200), ("publicRead", 400)])
def test_access_lists_may_say_only_what_is_so(http: httpx.Client, acl: str, status: int) -> None:
    said = {"uploadType": "media", "name": "acl", "predefinedAcl": acl}
    assert http.post("/upload/storage/v1/b/lake/o", params=said, content=b"x").status_code == status


NULLS = [
    ("POST", "/storage/v1/b/lake/o/joined/compose", {"kind": None, "destination": None, "deleteSourceObjects": None,
     "sourceObjects": [{"name": "n1", "generation": None, "objectPreconditions": None},
                       {"name": "n1", "objectPreconditions": {"ifGenerationMatch": None}}]}),
    ("POST", "/storage/v1/b?project=demo", {"name": "lake-null", "location": None, "labels": None, "versioning": None,
     "iamConfiguration": None, "encryption": None, "lifecycle": None, "rpo": None}),
    ("PATCH", "/storage/v1/b/lake", {"labels": None, "versioning": None, "encryption": None}),
    ("PATCH", "/storage/v1/b/lake/o/n1", {"contentType": None, "metadata": None, "acl": None, "customTime": None}),
    ("POST", "/storage/v1/b/lake/o/n1/rewriteTo/b/lake/o/n2", {"contentType": None, "metadata": None, "acl": None}),
    ("POST", "/storage/v1/b/lake/o/n1/copyTo/b/lake/o/n3", {"contentType": None, "metadata": {"a": None}}),
    ("POST", "/upload/storage/v1/b/lake/o?uploadType=resumable&name=n4", {"name": None, "contentType": None,
     "metadata": None, "md5Hash": None, "crc32c": None}),
]  # fmt: skip


@pytest.mark.parametrize("method, path, body", NULLS)
def test_null_is_absent_in_every_body(http: httpx.Client, method: str, path: str, body: dict[str, Any]) -> None:
    http.post("/upload/storage/v1/b/lake/o", params={"uploadType": "media", "name": "n1"}, content=b"x")
    answer = http.request(method, path, json=body)
    assert answer.status_code == 200, answer.text
