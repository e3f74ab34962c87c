"""The storage API in plain HTTP: what the official clients never send, and what must hold whoever calls."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

import google_crc32c
import httpx
import pytest

from .storage_server import Server

B = "/storage/v1/b/raw"
UP = "/upload/storage/v1/b/raw/o"
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("outer") / "home")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.http() as client:
        client.post("/storage/v1/b?project=demo", json={"name": "raw"}).raise_for_status()
        yield client


def put(http: httpx.Client, name: str, data: bytes = b"x", **params: str) -> httpx.Response:
    return http.post(UP, params={"uploadType": "media", "name": name, **params}, content=data)


def related(
    resource: str, data: bytes, *, end: str = "\r\n", mark: str = "mark", quoted: str = "mark"
) -> dict[str, object]:
    lines = [
        f"--{mark}",
        "Content-Type: application/json",
        "",
        resource,
        f"--{mark}",
        "Content-Type: text/plain",
        "",
        "",
    ]
    body = end.join(lines).encode() + data + f"{end}--{mark}--{end}".encode()
    return {"content": body, "headers": {"Content-Type": f"multipart/related; boundary={quoted}"}}


def leftovers(server: Server) -> list[Path]:
    return list((server.home / "uploads").iterdir())


def test_multipart_in_every_dialect(http: httpx.Client) -> None:
    data = b"first\r\n--mar\r\n--markless\nlast\n"[:13] + b"\r\n\n\r"
    for end in ("\r\n", "\n"):
        for mark, quoted in (
            ("mark", "mark"),
            ("mark", '"mark"'),
            ("mark", "'mark'"),
            ("'mark'", "'mark'"),
            ("=_1:2", '"=_1:2"'),
        ):
            args = related('{"name": "dialect", "metadata": {"a": "b"}}', data, end=end, mark=mark, quoted=quoted)
            answer = http.post(f"{UP}?uploadType=multipart", **args)
            assert answer.status_code == 200, answer.text
            assert (answer.json()["contentType"], answer.json()["metadata"]) == ("text/plain", {"a": "b"})
            assert http.get(f"{B}/o/dialect?alt=media").content == data


def test_multipart_bodies_that_are_not_whole_store_nothing(http: httpx.Client, server: Server) -> None:
    whole = related('{"name": "torn"}', b"data" * 1000)
    content, headers = whole["content"], whole["headers"]
    assert isinstance(content, bytes)
    good_headers = {"Content-Type": "multipart/related; boundary=mark"}
    bad: list[tuple[bytes, dict[str, str]]] = [(content[:cut], good_headers) for cut in range(0, len(content) - 4, 97)]
    bad += [
        (content.replace(b"--mark--", b"--mark\r\n\r\nthird\r\n--mark--"), good_headers),
        (content.replace(b'{"name"', b"{name"), good_headers),
        (content.replace(b'{"name": "torn"}', b"[1]"), good_headers),
        (content.replace(b'{"name": "torn"}', b"\xff\xfe"), good_headers),
        (b"x" * 3 * MIB, good_headers),
        (b"--mark\r\n" + b"x" * 3 * MIB, good_headers),
        (content, {"Content-Type": "multipart/related"}),
        (content, {"Content-Type": "text/plain"}),
        (content, {"Content-Type": "multipart/related; boundary=other"}),
    ]
    for body, sent in bad:
        answer = http.post(f"{UP}?uploadType=multipart", content=body, headers=sent)
        assert answer.status_code == 400, (body[:80], answer.text)
        assert answer.json()["error"]["errors"][0]["reason"] == "invalid"
    assert http.get(f"{B}/o/torn").status_code == 404
    assert not leftovers(server)
    assert headers == good_headers


def test_a_connection_that_breaks_leaves_nothing(server: Server, http: httpx.Client) -> None:
    head = (
        f"POST {UP}?uploadType=media&name=broken HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n"
        f"Authorization: {http.headers['authorization']}\r\n\r\n"
    )
    for sent in (0, 10, 2 * MIB):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + b"x" * sent)
    deadline = threading.Event()
    while leftovers(server) and not deadline.wait(0.05):
        pass
    assert http.get(f"{B}/o/broken").status_code == 404


def test_wrong_hashes_are_refused_and_right_ones_accepted(http: httpx.Client, server: Server) -> None:
    data = b"the bytes"
    md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
    crc = base64.b64encode(google_crc32c.value(data).to_bytes(4)).decode()
    other = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    tries: list[tuple[Callable[[str, str], httpx.Response], tuple[str, str]]] = []

    def multipart(kind: str, value: str) -> httpx.Response:
        key = {"md5": "md5Hash", "crc32c": "crc32c"}[kind]
        return http.post(f"{UP}?uploadType=multipart", **related(json.dumps({"name": "hash", key: value}), data))

    def media(kind: str, value: str) -> httpx.Response:
        params = {"uploadType": "media", "name": "hash"}
        return http.post(UP, params=params, content=data, headers={"X-Goog-Hash": f"{kind}={value}"})

    def xml(kind: str, value: str) -> httpx.Response:
        headers = {"Content-MD5": value} if kind == "md5" else {"X-Goog-Hash": f"crc32c={value}"}
        return http.put("/raw/hash", content=data, headers=headers)

    def resumable(kind: str, value: str) -> httpx.Response:
        key = {"md5": "md5Hash", "crc32c": "crc32c"}[kind]
        begun = http.post(f"{UP}?uploadType=resumable", json={"name": "hash", key: value})
        return http.put(begun.headers["location"], content=data)

    for send in (multipart, media, xml, resumable):
        tries += [(send, ("md5", other)), (send, ("md5", "garbage")), (send, ("crc32c", "AAAAAA=="))]
    for send, said in tries:
        answer = send(*said)
        assert answer.status_code == 400 and "match" in answer.text, (send.__name__, said, answer.text)
        assert http.get(f"{B}/o/hash").status_code == 404
    assert not leftovers(server)
    for send in (multipart, media, xml, resumable):
        for said in (("md5", md5), ("crc32c", crc)):
            assert send(*said).status_code == 200
    answer = http.get(f"{B}/o/hash?alt=media")
    assert answer.headers["x-goog-hash"] == f"crc32c={crc},md5={md5}"


@pytest.mark.parametrize(
    ("asked", "status", "given"),
    [
        ("bytes=0-0", 206, "bytes 0-0/10"), ("bytes=2-5", 206, "bytes 2-5/10"), ("bytes=7-", 206, "bytes 7-9/10"),
        ("bytes=-3", 206, "bytes 7-9/10"), ("bytes=-99", 206, "bytes 0-9/10"), ("bytes=8-99", 206, "bytes 8-9/10"),
        ("bytes=10-", 416, "bytes */10"), ("bytes=99-100", 416, "bytes */10"), ("bytes=-0", 416, "bytes */10"),
        ("bytes=5-2", 200, None), ("bytes=-", 200, None), ("bytes=a-b", 200, None), ("lines=1-2", 200, None),
        ("bytes=0-1,4-5", 200, None), (f"bytes={'9' * 18}-", 416, "bytes */10"),
    ],
)  # fmt: skip
def test_ranges(http: httpx.Client, asked: str, status: int, given: str | None) -> None:
    data = b"0123456789"
    put(http, "range", data)
    for path in (f"{B}/o/range?alt=media", "/download/storage/v1/b/raw/o/range?alt=media", "/raw/range"):
        answer = http.get(path, headers={"Range": asked})
        assert (answer.status_code, answer.headers.get("content-range")) == (status, given)
        if given and status == 206:
            first, last = map(int, given[6:].split("/")[0].split("-"))
            assert answer.content == data[first : last + 1]
    put(http, "empty", b"")
    assert http.get(f"{B}/o/empty?alt=media").content == b""
    assert http.get(f"{B}/o/empty?alt=media", headers={"Range": "bytes=0-"}).status_code == 416


def escapes() -> list[str]:
    """Many spellings of a way out of a folder, as one path piece each."""
    ups = ["..", "../..", "../../../..", "a/../../..", "./..", "..;", "....//", "..\\..", "a/..\\../..", "/", "//", "~"]
    targets = ["/credentials/admin.json", "/sarto.db", "/../secret", "/etc/passwd", ""]
    encodings: list[Callable[[str], str]] = [
        lambda s: s,
        lambda s: s.replace("/", "%2F").replace("\\", "%5C"),
        lambda s: s.replace(".", "%2e").replace("\\", "%5c"),
        lambda s: "".join(f"%{ord(c):02x}" for c in s),
        lambda s: "".join(f"%25{ord(c):02x}" for c in s),
        lambda s: s.replace("/", "%c0%af"),
        lambda s: s.replace("/", "%ef%bc%8f"),
        lambda s: s.replace("/", "%2F") + "%00.jsonl",
    ]
    found = {encode(up + target).replace("\\", "%5C") for up in ups for target in targets for encode in encodings}
    return sorted(found)


def test_no_spelling_of_a_name_leaves_the_buckets(server: Server, http: httpx.Client) -> None:
    secret = server.home.parent / "secret"
    secret.write_text("CANARY")
    key = server.key_file.read_text()
    credentials = json.loads(key)["private_key"][40:80]
    outside = {p for p in server.home.parent.rglob("*") if not p.is_relative_to(server.home / "objects")}
    authorization = {"Authorization": http.headers["authorization"], "Content-Type": "application/json"}
    wire = HTTPConnection("127.0.0.1", server.port)  # sends a path as it is written
    tried = 0
    for spelling in escapes():
        requests: list[tuple[str, str, bytes]] = [
            ("GET", f"{B}/o/{spelling}?alt=media", b""),
            ("GET", f"/storage/v1/b/{spelling}/o/x?alt=media", b""),
            ("GET", f"/download/storage/v1/b/raw/o/{spelling}?alt=media", b""),
            ("GET", f"/raw/{spelling}", b""),
            ("GET", f"/{spelling}", b""),
            ("PUT", f"/raw/{spelling}", b"evil"),
            ("PUT", f"/{spelling}/x", b"evil"),
            ("POST", f"{UP}?uploadType=media&name={spelling}", b"evil"),
            ("POST", f"/upload/storage/v1/b/{spelling}/o?uploadType=media&name=x", b"evil"),
            ("PUT", f"{UP}?uploadType=resumable&upload_id={spelling}", b"evil"),
            ("DELETE", f"{UP}?uploadType=resumable&upload_id={spelling}", b""),
            ("PUT", f"/raw/x?partNumber=1&uploadId={spelling}", b"evil"),
            ("DELETE", f"{B}/o/{spelling}", b""),
            ("POST", f"{B}/o/{spelling}/copyTo/b/raw/o/{spelling}", b"{}"),
            ("GET", f"{B}/o?prefix={spelling}&pageToken={spelling}", b""),
        ]
        for method, path, body in requests:
            wire.request(method, path, body=body or None, headers=authorization)
            answer = wire.getresponse()
            content = answer.read()
            tried += 1
            assert answer.status < 500, (method, path, content)
            assert b"CANARY" not in content and credentials.encode() not in content, (method, path)
    wire.close()
    assert {p for p in server.home.parent.rglob("*") if not p.is_relative_to(server.home / "objects")} == outside
    assert (secret.read_text(), server.key_file.read_text()) == ("CANARY", key)
    stored = [p for p in (server.home / "objects").rglob("*") if p.is_file()]
    assert all(p.name.partition("-")[0] == hashlib.sha256(p.read_bytes()).hexdigest() for p in stored)
    assert not leftovers(server)
    assert tried > 5000


def test_of_concurrent_create_only_uploads_exactly_one_wins(server: Server, http: httpx.Client) -> None:
    gate = threading.Barrier(12)

    def write(writer: int) -> int:
        with server.http() as mine:
            data = b"writer %d" % writer
            location = ""
            if writer % 3 == 2:
                begun = mine.post(f"{UP}?uploadType=resumable&ifGenerationMatch=0", json={"name": "one"})
                location = begun.headers["location"]
            gate.wait()
            if writer % 3 == 0:
                return put(mine, "one", data, ifGenerationMatch="0").status_code
            if writer % 3 == 1:
                return mine.put("/raw/one", content=data, headers={"x-goog-if-generation-match": "0"}).status_code
            return mine.put(location, content=data).status_code

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(write, range(12)))
    assert sorted(answers) == [200] + [412] * 11
    assert http.get(f"{B}/o/one?alt=media").content == b"writer %d" % answers.index(200)
    assert not leftovers(server)


def test_a_session_survives_a_killed_server(server: Server, http: httpx.Client) -> None:
    data = os.urandom(3 * MIB + 5)
    begun = http.post(f"{UP}?uploadType=resumable", json={"name": "resumed", "contentType": "text/plain"})
    location = begun.headers["location"]
    first = http.put(location, content=data[:MIB], headers={"Content-Range": f"bytes 0-{MIB - 1}/*"})
    assert (first.status_code, first.headers["range"]) == (308, f"bytes=0-{MIB - 1}")
    server.restart()
    asked = http.put(location, headers={"Content-Range": "bytes */*", "Content-Length": "0"})
    assert (asked.status_code, asked.headers["range"]) == (308, f"bytes=0-{MIB - 1}")
    gap = http.put(location, content=b"x" * 10, headers={"Content-Range": f"bytes {2 * MIB}-{2 * MIB + 9}/{len(data)}"})
    assert (gap.status_code, gap.headers["range"]) == (308, f"bytes=0-{MIB - 1}")
    overlap = {"Content-Range": f"bytes {MIB - 7}-{len(data) - 1}/{len(data)}"}
    done = http.put(location, content=data[MIB - 7 :], headers=overlap)
    assert (done.status_code, done.json()["size"], done.json()["contentType"]) == (200, str(len(data)), "text/plain")
    assert http.get(f"{B}/o/resumed?alt=media").content == data
    server.restart()
    again = http.put(location, headers={"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
    assert (again.status_code, again.json()["generation"]) == (200, done.json()["generation"])
    assert not leftovers(server)


def test_a_chunk_torn_by_a_broken_connection_is_kept_as_far_as_it_came(server: Server, http: httpx.Client) -> None:
    location = http.post(f"{UP}?uploadType=resumable", json={"name": "half"}).headers["location"]
    path = location.removeprefix(server.address)
    head = (
        f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {4 * MIB}\r\n"
        f"Content-Range: bytes 0-{4 * MIB - 1}/{4 * MIB}\r\n"
        f"Authorization: {http.headers['authorization']}\r\n\r\n"
    )
    data = os.urandom(4 * MIB)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + data[: 3 * MIB])
    while True:
        asked = http.put(location, headers={"Content-Range": f"bytes */{4 * MIB}", "Content-Length": "0"})
        assert asked.status_code == 308
        received = (
            int(asked.headers.get("range", "bytes=0--1").rpartition("-")[2]) + 1 if "range" in asked.headers else 0
        )
        rest = {"Content-Range": f"bytes {received}-{4 * MIB - 1}/{4 * MIB}"}
        done = http.put(location, content=data[received:], headers=rest)
        if done.status_code != 503:  # the broken request still holds the session
            break
    assert done.status_code == 200
    assert http.get(f"{B}/o/half?alt=media").content == data


def test_session_rules(http: httpx.Client, server: Server) -> None:
    def begin() -> str:
        return http.post(f"{UP}?uploadType=resumable", json={"name": "rules"}).headers["location"]

    def send(location: str, body: bytes, content_range: str) -> int:
        return http.put(location, content=body, headers={"Content-Range": content_range}).status_code

    one = begin()
    for bad in ("bytes 5-2/10", "bytes 0-9/10x", "bytes 0-10/10", "items 0-1/2", "bytes 0-3", "bytes -1-3/4"):
        assert send(one, b"0123", bad) == 400
    assert send(one, b"0123456", "bytes 0-3/10") == 400
    assert send(one, b"0123", "bytes 0-3/10") == 308
    assert http.delete(one).status_code == 499
    assert send(one, b"0123", "bytes 0-3/4") == 404
    assert http.put(begin(), content=b"all at once").json()["size"] == "11"
    assert send(begin(), b"", "bytes */0") == 200
    open_ended = {total: begin() for total in ("*", "8", "9", "7")}
    answers = [send(one, b"open end", f"bytes 0-*/{total}") for total, one in open_ended.items()]
    assert answers == [200, 200, 308, 400]
    for one in (open_ended["9"], open_ended["7"]):
        http.delete(one)
    assert http.put(f"{UP}?uploadType=resumable&upload_id=none", content=b"x").status_code == 404
    assert http.post(f"{UP}?uploadType=sideways&name=x", content=b"x").status_code == 400
    assert not leftovers(server)


def test_a_large_object_goes_through_in_flat_memory(server: Server, http: httpx.Client) -> None:
    block = os.urandom(MIB)
    put(http, "warm", block * 2)
    http.get(f"{B}/o/warm?alt=media")
    before = server.peak_memory()
    digest = hashlib.md5()
    for _ in range(64):
        digest.update(block)
    answer = http.post(f"{UP}?uploadType=media&name=large", content=(block for _ in range(64)), timeout=60)
    assert answer.json()["md5Hash"] == base64.b64encode(digest.digest()).decode()
    http.put("/raw/large-xml", content=(block for _ in range(64)), timeout=60).raise_for_status()
    down = hashlib.md5()
    with http.stream("GET", f"{B}/o/large?alt=media") as stream:
        for piece in stream.iter_raw():
            down.update(piece)
    assert down.digest() == digest.digest()
    assert server.peak_memory() - before < 24 * MIB


def test_what_would_change_the_meaning_is_refused_by_name(http: httpx.Client) -> None:
    key = {"x-goog-encryption-algorithm": "AES256", "x-goog-encryption-key": "a"}
    for answer, word in (
        (http.post(f"{UP}?uploadType=media&name=a", content=b"x", headers=key), "encryption keys"),
        (put(http, "a", predefinedAcl="publicRead"), "predefinedAcl"),
        (put(http, "a", kmsKeyName="k"), "kmsKeyName"),
        (http.get(f"{B}/o?matchGlob=**"), "matchGlob"),
        (http.get(f"{B}/o?softDeleted=true"), "Soft-deleted"),
        (http.post(f"{UP}?uploadType=resumable", json={"name": "a", "temporaryHold": True}), "temporaryHold"),
        (http.post(f"{UP}?uploadType=resumable", json={"name": "a", "acl": [{"entity": "allUsers"}]}), "acl"),
        (http.post("/storage/v1/b", json={"name": "abc", "versioning": {"enabled": True}}), "versioning"),
        (http.post("/storage/v1/b", json={"name": "abc", "lifecycle": {"rule": [{}]}}), "lifecycle"),
    ):
        assert answer.status_code == 400 and word in answer.json()["error"]["message"], answer.text


def test_errors_have_the_form_clients_read(http: httpx.Client) -> None:
    missing = http.get(f"{B}/o/nothing")
    row = {"message": "No such object: raw/nothing", "domain": "global", "reason": "notFound"}
    assert missing.json() == {"error": {"code": 404, "message": row["message"], "errors": [row]}}
    assert httpx.get(str(http.base_url.join(f"{B}/o"))).status_code == 401
    assert http.get("/raw/nothing").text.startswith("<?xml version='1.0' encoding='UTF-8'?><Error><Code>NoSuchKey")
    assert http.get("/no-such-url-or-bucket").json()["error"]["status"] == "NOT_FOUND"
    assert http.post(f"{B}/o/a/compose", content=b"{").status_code == 400
    for bad in ("-1", "x", "1e3", "9" * 30):
        assert http.get(f"{B}/o", params={"maxResults": bad}).status_code == 400
        assert http.get(f"{B}/o/a", params={"generation": bad}).status_code == 400


def test_xml_listing_and_conditions(http: httpx.Client) -> None:
    for name in ("xml/<a&b>", "xml/c/d", "xml/c/e", "xml/f"):
        http.put(f"/raw/{quote(name)}", content=b"x").raise_for_status()
    first = http.get("/raw?list-type=2&prefix=xml/&delimiter=/&max-keys=2").text
    assert "<Key>xml/&lt;a&amp;b&gt;</Key>" in first and "<Prefix>xml/c/</Prefix>" in first
    assert "<IsTruncated>true</IsTruncated>" in first
    token = first.partition("<NextContinuationToken>")[2].partition("<")[0]
    second = http.get(
        "/raw", params={"list-type": "2", "prefix": "xml/", "delimiter": "/", "continuation-token": token}
    )
    assert "<Key>xml/f</Key>" in second.text and "xml/c/" not in second.text
    after = http.get("/raw?list-type=2&start-after=xml/c/d").text
    assert "<Key>xml/c/e</Key>" in after and "<Key>xml/c/d</Key>" not in after
    tag = http.head("/raw/xml/f").headers["etag"]
    assert http.get("/raw/xml/f", headers={"If-None-Match": tag}).status_code == 304
    assert http.get("/raw/xml/f", headers={"If-Match": '"other"'}).status_code == 412
    assert http.put("/raw/xml/f", content=b"y", headers={"If-None-Match": "*"}).status_code == 412
    assert http.request("HEAD", "/raw").status_code == 200
    for subresource in ("acl", "compose", "tagging", "versioning"):
        assert http.put(f"/raw/xml/f?{subresource}", content=b"<x/>").status_code == 400
    assert http.get("/raw/xml/f").content == b"x"


def test_xml_multipart_rules(http: httpx.Client, server: Server) -> None:
    begun = http.post("/raw/parts?uploads")
    id = begun.text.partition("<UploadId>")[2].partition("<")[0]
    tags = [http.put(f"/raw/parts?partNumber={n}&uploadId={id}", content=b"part%d" % n).headers["etag"] for n in (1, 2)]

    def complete(*parts: tuple[int, str]) -> httpx.Response:
        rows = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag></Part>" for n, tag in parts)
        body = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>"
        return http.post(f"/raw/parts?uploadId={id}", content=body)

    assert complete().status_code == 400
    assert complete((2, tags[1]), (1, tags[0])).status_code == 400
    assert complete((1, tags[1])).status_code == 400
    assert complete((1, tags[0]), (3, tags[1])).status_code == 400
    assert complete((1, "../../x")).status_code == 400
    entity = b'<!DOCTYPE x [<!ENTITY a "b">]><CompleteMultipartUpload/>'
    assert http.post(f"/raw/parts?uploadId={id}", content=entity).status_code == 400
    assert http.put(f"/raw/other?partNumber=1&uploadId={id}", content=b"x").status_code == 404
    assert http.put(f"/raw/parts?partNumber=0&uploadId={id}", content=b"x").status_code == 400
    again = http.put(f"/raw/parts?partNumber=2&uploadId={id}", content=b"second").headers["etag"]
    assert complete((1, tags[0]), (2, tags[1])).status_code == 400
    assert complete((1, tags[0]), (2, again)).status_code == 200
    assert http.get("/raw/parts").content == b"part1second"
    begun = http.post("/raw/parts?uploads")
    id = begun.text.partition("<UploadId>")[2].partition("<")[0]
    http.put(f"/raw/parts?partNumber=1&uploadId={id}", content=b"x")
    assert http.delete(f"/raw/parts?uploadId={id}").status_code == 204
    assert http.delete(f"/raw/parts?uploadId={id}").status_code == 404
    assert not leftovers(server)


def test_another_project_sees_nothing_and_touches_nothing(server: Server, http: httpx.Client) -> None:
    put(http, "mine", b"private")
    location = http.post(f"{UP}?uploadType=resumable", json={"name": "mine"}).headers["location"]
    calls: list[tuple[str, str, str]] = [
        ("GET", "/storage/v1/b/{b}", ""), ("GET", "/storage/v1/b/{b}/o", ""), ("GET", "/storage/v1/b/{b}/o/mine", ""),
        ("GET", "/download/storage/v1/b/{b}/o/mine?alt=media", ""), ("GET", "/{b}/mine", ""), ("HEAD", "/{b}/mine", ""),
        ("DELETE", "/storage/v1/b/{b}/o/mine", ""), ("DELETE", "/storage/v1/b/{b}", ""), ("PUT", "/{b}/mine", "x"),
        ("PATCH", "/storage/v1/b/{b}/o/mine", "{}"), ("PATCH", "/storage/v1/b/{b}", "{}"),
        ("POST", "/upload/storage/v1/b/{b}/o?uploadType=media&name=mine", "x"), ("DELETE", "/{b}/mine", ""),
        ("POST", "/storage/v1/b/{b}/o/mine/copyTo/b/stolen/o/x", ""),
        ("POST", "/storage/v1/b/stolen/o/own/copyTo/b/{b}/o/mine", ""),
        ("PUT", location.removeprefix(server.address).replace("/raw/", "/{b}/"), "x"), ("GET", "/{b}?list-type=2", ""),
    ]  # fmt: skip
    with server.http() as admin:
        assert admin.get(f"{B}/o/mine").status_code == 200
    with httpx.Client(base_url=server.address, headers={"Authorization": f"Bearer {server.stranger()}"}) as stranger:
        assert stranger.get("/storage/v1/b").json()["items"] == []
        stranger.post("/storage/v1/b", json={"name": "stolen"}).raise_for_status()
        stranger.put("/stolen/own", content=b"own").raise_for_status()
        for method, path, body in calls:
            answers = [stranger.request(method, path.format(b=b), content=body) for b in ("raw", "no-such-bucket")]
            assert [a.status_code for a in answers] == [404, 404], (method, path, answers[0].text)
            assert answers[0].text.replace("raw", "") == answers[1].text.replace("no-such-bucket", "")
        own = stranger.put(f"/upload/storage/v1/b/stolen/o?{location.partition('?')[2]}", content=b"x")
        assert own.status_code == 404
    assert http.get(f"{B}/o/mine?alt=media").content == b"private"
