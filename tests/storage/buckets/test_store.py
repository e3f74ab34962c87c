from __future__ import annotations

import base64
import hashlib
import json
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import google_crc32c
import pytest

from sarto.errors import (
    AlreadyExists,
    ConditionNotMet,
    InvalidArgument,
    NotEmpty,
    NotFound,
    PermissionDenied,
    SartoError,
)
from sarto.storage.buckets.objects import NoSuchBucket, check_bucket_name
from sarto.storage.buckets.store import Buckets, Conditions, ObjectFields
from sarto.storage.database.tables import meta, stored_object
from tests.storage.conftest import ON_BOTH, OWNER, STRANGER

FIRST = Conditions(metageneration=1)


def contents(buckets: Buckets) -> set[str]:
    return set(buckets.content.all())


@ON_BOTH
def test_an_object_keeps_its_bytes_and_their_hashes(buckets: Buckets, tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    source = tmp_path / "source"
    source.write_bytes(data)
    put = buckets.put_file("data", "train.jsonl", source, content_type="application/jsonl", metadata={"by": "me"})
    found = buckets.stat("data", "train.jsonl")
    assert found == put
    assert (found.size, found.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert found.md5 == base64.b64encode(hashlib.md5(data).digest()).decode()
    assert found.crc32c == base64.b64encode(google_crc32c.value(data).to_bytes(4)).decode()
    assert (found.content_type, found.fields.metadata) == ("application/jsonl", {"by": "me"})
    assert buckets.path(found).read_bytes() == data
    assert buckets.path(found) == tmp_path / "objects" / found.sha256[:2] / f"{found.sha256}-101"
    assert stat.S_IMODE(buckets.path(found).stat().st_mode) == 0o400


@ON_BOTH
def test_a_bucket_holds_a_name_and_names_below_it(buckets: Buckets) -> None:
    for name in ("a", "a/b", "a/", "a//b", "a/b/../c", "/a"):
        buckets.put_bytes("data", name, name.encode())
    assert [o.name for o in buckets.list("data").objects] == ["/a", "a", "a/", "a//b", "a/b", "a/b/../c"]
    assert buckets.path(buckets.stat("data", "a/b/../c")).read_bytes() == b"a/b/../c"


def test_equal_bytes_lie_on_disk_once_and_go_with_their_last_name(buckets: Buckets) -> None:
    for name in ("one", "two"):
        buckets.put_bytes("data", name, b"same")
    assert len(contents(buckets)) == 1
    buckets.delete("data", "one")
    assert len(contents(buckets)) == 1
    buckets.put_bytes("data", "two", b"other")
    assert contents(buckets) == {f"{hashlib.sha256(b'other').hexdigest()}-101"}


@ON_BOTH
def test_two_projects_share_no_bytes_and_neither_finds_its_own_changed_by_the_other(buckets: Buckets) -> None:
    """That bytes are here already would show in the time to store and to delete them, and on the disk."""
    buckets.create_bucket("202", "theirs")
    ours, theirs = buckets.put_bytes("data", "one", b"same"), buckets.put_bytes("theirs", "one", b"same")
    assert ours.sha256 == theirs.sha256 and not buckets.path(ours).samefile(buckets.path(theirs))
    buckets.delete("data", "one")
    assert not buckets.path(ours).exists() and buckets.path(theirs).read_bytes() == b"same"
    copied = buckets.copy(theirs, "data", "copy")
    assert buckets.path(copied) != buckets.path(theirs)
    buckets.delete("theirs", "one")
    assert buckets.path(copied).read_bytes() == b"same" and contents(buckets) == {copied.content}
    assert buckets.sweep() == 0


@ON_BOTH
def test_what_lay_there_before_projects_had_content_of_their_own_is_read_copied_and_collected(buckets: Buckets) -> None:
    new = buckets.put_bytes("data", "old", b"from before")
    place = buckets.content.path(new.sha256)
    buckets.path(new).rename(place)
    with buckets.database.transaction() as connection:
        connection.execute(stored_object.update().values(resource=json.dumps({})))
    assert buckets.sweep() == 0
    old = buckets.stat("data", "old")
    assert buckets.path(old) == place and place.read_bytes() == b"from before"
    copied = buckets.copy(old, "data", "copy")
    assert buckets.path(copied) == buckets.content.path(f"{new.sha256}-101")
    buckets.delete("data", "old")
    assert not place.exists() and buckets.path(copied).read_bytes() == b"from before"


@ON_BOTH
def test_generations_grow_even_when_the_clock_goes_back(buckets: Buckets) -> None:
    first = buckets.put_bytes("data", "a", b"1").generation
    future = str(first + 10**12)
    with buckets.database.transaction() as connection:
        connection.execute(meta.update().where(meta.c.key == "storage_generation").values(value=future))
    buckets.delete("data", "a")
    assert buckets.put_bytes("data", "a", b"2").generation == int(future) + 1
    assert buckets.put_bytes("data", "b", b"2").generation == int(future) + 2


@ON_BOTH
def test_conditions_hold_or_nothing_happens(buckets: Buckets) -> None:
    first = buckets.put_bytes("data", "a", b"1", if_generation_match=0)
    with pytest.raises(ConditionNotMet, match="ifGenerationMatch"):
        buckets.put_bytes("data", "a", b"2", if_generation_match=0)
    with pytest.raises(ConditionNotMet, match="ifMetagenerationMatch"):
        buckets.update("data", "a", lambda fields: fields, conditions=Conditions(metageneration=7))
    with pytest.raises(ConditionNotMet, match="ifGenerationNotMatch"):
        buckets.delete("data", "a", conditions=Conditions(not_generation=first.generation))
    assert buckets.path(buckets.stat("data", "a")).read_bytes() == b"1"
    second = buckets.put_bytes("data", "a", b"2", if_generation_match=first.generation)
    assert second.generation > first.generation
    assert len(contents(buckets)) == 1
    assert not list(buckets.content.uploads.iterdir())


@ON_BOTH
def test_of_many_create_only_writers_exactly_one_wins(buckets: Buckets) -> None:
    gate = threading.Barrier(16)

    def write(writer: int) -> bool:
        gate.wait()
        try:
            buckets.put_bytes("data", "manifest", b"%d" % writer, if_generation_match=0)
        except ConditionNotMet:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(16)))
    assert sum(won) == 1
    assert buckets.path(buckets.stat("data", "manifest")).read_bytes() == b"%d" % won.index(True)
    assert len(contents(buckets)) == 1


@ON_BOTH
def test_writers_and_deleters_of_equal_bytes_never_lose_content(buckets: Buckets) -> None:

    def work(writer: int) -> None:
        for _ in range(12):
            buckets.put_bytes("data", f"mine-{writer}", b"shared")
            assert buckets.path(buckets.stat("data", f"mine-{writer}")).read_bytes() == b"shared"
            buckets.delete("data", f"mine-{writer}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert not contents(buckets)


def test_updating_fields_keeps_bytes_and_generation(buckets: Buckets) -> None:
    put = buckets.put_bytes("data", "a", b"1")
    changed = buckets.update("data", "a", lambda fields: replace(fields, content_type="text/plain"))
    assert buckets.stat("data", "a") == changed
    assert (changed.generation, changed.metageneration, changed.content_type) == (put.generation, 2, "text/plain")
    buckets.put_bytes("data", "a", b"2")
    with pytest.raises(NotFound):
        buckets.update("data", "a", lambda fields: fields, put.generation)


@ON_BOTH
def test_copy_and_compose_make_whole_objects(buckets: Buckets) -> None:
    one, two = buckets.put_bytes("data", "1", b"one,"), buckets.put_bytes("data", "2", b"two")
    both = buckets.compose("data", "both", [one, two, one])
    assert buckets.path(both).read_bytes() == b"one,twoone,"
    copied = buckets.copy(both, "data", "copy")
    assert (copied.sha256, copied.fields) == (both.sha256, both.fields)
    buckets.delete("data", "both")
    assert buckets.path(copied).read_bytes() == b"one,twoone,"


def test_an_opened_or_linked_object_outlives_its_deletion(buckets: Buckets, tmp_path: Path) -> None:
    put = buckets.put_bytes("data", "a", b"bytes")
    buckets.link_into(put, tmp_path / "kept")
    with buckets.open(put) as file:
        buckets.delete("data", "a")
        assert file.read() == b"bytes"
    assert (tmp_path / "kept").read_bytes() == b"bytes"
    with pytest.raises(NotFound):
        buckets.open(put)
    with pytest.raises(NotFound):
        buckets.link_into(put, tmp_path / "late")


def test_resolve_reads_gs_names_and_refuses_other_storage_by_name(buckets: Buckets) -> None:
    put = buckets.put_bytes("data", "f/a.jsonl", b"x")
    assert buckets.resolve("gs://data/f/a.jsonl") == put
    for uri in ("s3://data/a", "file:///etc/passwd", "http://127.0.0.1/a"):
        with pytest.raises(InvalidArgument, match=f"{uri.split(':')[0]}.* not supported"):
            buckets.resolve(uri, "training_dataset_uri")
    for uri in ("/etc/passwd", "data/a", "", "gs://"):
        with pytest.raises(InvalidArgument, match="training_dataset_uri"):
            buckets.resolve(uri, "training_dataset_uri")
    with pytest.raises(NotFound, match="No such object: data/nothing"):
        buckets.resolve("gs://data/nothing")


@ON_BOTH
def test_a_foreign_bucket_answers_as_one_that_does_not_exist(buckets: Buckets) -> None:
    put = buckets.put_bytes("data", "a", b"secret")
    buckets.create_bucket(STRANGER, "theirs")
    attempts: list[Callable[[str], object]] = [
        lambda b: buckets.bucket(b, STRANGER),
        lambda b: buckets.stat(b, "a", project=STRANGER),
        lambda b: buckets.resolve(f"gs://{b}/a", project=STRANGER),
        lambda b: buckets.list(b, project=STRANGER),
        lambda b: buckets.put_bytes(b, "x", b"x", project=STRANGER),
        lambda b: buckets.delete(b, "a", project=STRANGER),
        lambda b: buckets.delete_bucket(b, project=STRANGER),
        lambda b: buckets.update_bucket(b, lambda _: {}, project=STRANGER),
        lambda b: buckets.copy(put, b, "x", project=STRANGER),
    ]
    for attempt in attempts:
        answers = []
        for name in ("data", "no-such-bucket"):
            with pytest.raises(SartoError) as error:
                attempt(name)
            answers.append((type(error.value), error.value.message))
        assert answers[0] == answers[1] == (NoSuchBucket, "The specified bucket does not exist.")
    assert [b.name for b in buckets.buckets(STRANGER)] == ["theirs"]
    assert buckets.stat("data", "a", project=OWNER) == put


def test_a_public_bucket_is_read_by_all_and_written_by_none_but_its_owner(buckets: Buckets) -> None:
    buckets.create_bucket("0", "samples", is_public=True)
    buckets.put_bytes("samples", "a", b"x")
    assert buckets.stat("samples", "a", project=STRANGER).size == 1
    assert len(buckets.list("samples", project=OWNER).objects) == 1
    for act in (
        lambda: buckets.put_bytes("samples", "a", b"y", project=OWNER),
        lambda: buckets.delete("samples", "a", project=OWNER),
        lambda: buckets.delete_bucket("samples", project=OWNER),
    ):
        with pytest.raises(PermissionDenied):
            act()


@ON_BOTH
def test_bucket_life(buckets: Buckets) -> None:
    made = buckets.create_bucket(OWNER, "runs", "us-central1", resource={"labels": {"a": "b"}})
    assert made == buckets.bucket("runs", OWNER)
    assert made.location == "US-CENTRAL1"
    with pytest.raises(AlreadyExists):
        buckets.create_bucket(STRANGER, "runs")
    assert buckets.update_bucket("runs", lambda old: {**old, "labels": {}}, FIRST).metageneration == 2
    with pytest.raises(ConditionNotMet):
        buckets.update_bucket("runs", lambda _: {}, FIRST)
    assert [b.name for b in buckets.buckets(OWNER)] == ["data", "runs"]
    assert [b.name for b in buckets.buckets(OWNER, prefix="r")] == ["runs"]
    assert [b.name for b in buckets.buckets(OWNER, after="data", limit=1)] == ["runs"]
    buckets.put_bytes("runs", "a", b"")
    with pytest.raises(NotEmpty):
        buckets.delete_bucket("runs")
    buckets.delete("runs", "a")
    buckets.delete_bucket("runs")
    with pytest.raises(NotFound):
        buckets.bucket("runs")


@pytest.mark.parametrize("name", ["abc", "a-b_c.d-1", "my-project-bucket", "0bucket9", "a" * 63, "x." * 50 + "com"])
def test_good_bucket_names(name: str) -> None:
    assert check_bucket_name(name) == name


BAD_BUCKETS = [
    "", "ab", "A-bucket", "-ab", "ab-", "a..b", "a.-b", "a/b", "..", "../x", "a b", "a\0b", "192.168.0.1", "goog-x",
    "a" * 64, ".abc", "abc.", "täst", "a\nb", "%2e%2e", "abc\n",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_BUCKETS)
def test_bad_bucket_names(name: str, buckets: Buckets) -> None:
    with pytest.raises(InvalidArgument):
        buckets.create_bucket(OWNER, name)
    with pytest.raises(NotFound):
        buckets.bucket(name, OWNER)


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "a\nb", "a\rb", "\x7f", "é" * 513, "a" * 1025, "\ud800", "￿"])
def test_bad_object_names(name: str, buckets: Buckets) -> None:
    with pytest.raises(InvalidArgument):
        buckets.put_bytes("data", name, b"x")
    with pytest.raises(InvalidArgument):
        buckets.stat("data", name)
    assert not contents(buckets)


@pytest.mark.parametrize("name", ["a" * 1024, "é" * 512, "日本語/файл 😀.jsonl", "a b+c&d=e?f#g%2F", "'\"<>\\|*", " "])
def test_good_object_names(name: str, buckets: Buckets) -> None:
    assert buckets.put_bytes("data", name, b"x") == buckets.stat("data", name)
    assert buckets.list("data").objects[0].name == name


@pytest.mark.parametrize(
    "fields",
    [
        ObjectFields(content_type="a\r\nX: y"),
        ObjectFields(content_type="a" * 256),
        ObjectFields(metadata={"a": "b\n"}),
        ObjectFields(metadata={"a": "b" * 9000}),
    ],
)
def test_fields_that_cannot_be_headers_are_refused(fields: ObjectFields, buckets: Buckets) -> None:
    with buckets.spool("data") as spool, pytest.raises(InvalidArgument):
        buckets.store("data", "a", spool.finish(), fields)


@ON_BOTH
def test_sweep_removes_what_a_crash_left_and_nothing_else(buckets: Buckets) -> None:
    put = buckets.put_bytes("data", "a", b"kept")
    orphan = buckets.content.path("ab" + "0" * 62)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"left")
    with buckets.spool("data") as running:
        assert buckets.sweep() == 1
        assert running.path.exists()
    assert not orphan.exists()
    assert buckets.path(put).read_bytes() == b"kept"


def test_a_page_token_of_someone_else_is_refused(buckets: Buckets) -> None:
    for token in ("x", "b3g=x", "AA==", "=", "bwA="):
        with pytest.raises(InvalidArgument, match="pageToken"):
            buckets.list("data", page_token=token)


def test_a_listing_skips_a_large_group_by_one_seek(buckets: Buckets) -> None:
    first = buckets.put_bytes("data", "a/0", b"")
    for number in range(1, 40):
        buckets.copy(first, "data", f"a/{number}")
    buckets.put_bytes("data", "b", b"")
    page = buckets.list("data", delimiter="/", limit=1)
    assert (page.prefixes, page.objects) == (("a/",), ())
    rest = buckets.list("data", delimiter="/", limit=1, page_token=page.next_token)
    assert (rest.prefixes, [o.name for o in rest.objects], rest.next_token) == ((), ["b"], "")


def test_a_listing_may_name_folder_markers_too(buckets: Buckets) -> None:
    for name in ("f/", "f/a", "g/a"):
        buckets.put_bytes("data", name, b"")
    page = buckets.list("data", delimiter="/", include_trailing_delimiter=True)
    assert (page.prefixes, [o.name for o in page.objects]) == (("f/", "g/"), ["f/"])


@ON_BOTH
def test_equal_bytes_go_with_the_last_object_of_their_project(buckets: Buckets) -> None:
    buckets.create_bucket(STRANGER, "theirs")
    ours = [buckets.put_bytes("data", name, b"same") for name in ("a", "b")]
    theirs = buckets.put_bytes("theirs", "a", b"same", metadata={"owner": OWNER})
    buckets.delete("data", "a")
    assert contents(buckets) == {ours[0].content, theirs.content}
    buckets.delete("data", "b")
    assert contents(buckets) == {theirs.content}
    assert buckets.sweep() == 0
    buckets.delete("theirs", "a")
    assert not contents(buckets)
