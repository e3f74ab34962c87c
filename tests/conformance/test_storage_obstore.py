"""obstore as a client: it speaks the XML API."""

from __future__ import annotations

import os
from collections.abc import Iterator

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError
from obstore.store import GCSStore

from .storage_server import Server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GCSStore]:
    server = Server(tmp_path_factory.mktemp("home"))
    server.start()
    with server.http() as http:
        http.post("/storage/v1/b", json={"name": "by-obstore"}).raise_for_status()
    token = server.token()
    yield GCSStore(
        "by-obstore",
        base_url=server.address,
        credential_provider=lambda: {"token": token, "expires_at": None},
        client_options={"allow_http": True},
    )
    server.stop()


def test_bytes_listing_and_deletion(store: GCSStore) -> None:
    data = os.urandom(100_000)
    for name in ("a", "a/b", "a/c d", "e é"):
        obstore.put(store, name, data)
    assert obstore.get(store, "a/c d").bytes() == data
    assert obstore.get_range(store, "a", start=10, end=20) == data[10:20]
    assert obstore.head(store, "e é")["size"] == len(data)
    assert [row["path"] for row in obstore.list(store).collect()] == ["a", "a/b", "a/c d", "e é"]
    found = obstore.list_with_delimiter(store)
    assert (found["common_prefixes"], [row["path"] for row in found["objects"]]) == (["a"], ["a", "e é"])
    obstore.copy(store, "a", "copy")
    obstore.rename(store, "copy", "renamed")
    obstore.delete(store, ["renamed", "e é"])
    with pytest.raises(FileNotFoundError):
        obstore.head(store, "renamed")


def test_create_only(store: GCSStore) -> None:
    obstore.put(store, "once", b"1", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "once", b"2", mode="create")
    obstore.copy(store, "once", "twice", overwrite=False)
    with pytest.raises(AlreadyExistsError):
        obstore.copy(store, "once", "twice", overwrite=False)


def test_multipart_upload(store: GCSStore) -> None:
    data = os.urandom(12 << 20)
    obstore.put(store, "large", data, chunk_size=5 << 20, use_multipart=True)
    assert obstore.get(store, "large").bytes() == data
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "nothing")
