from __future__ import annotations

import base64
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sarto.errors import ConditionNotMet, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from sarto.storage.buckets.blobs import Checksums
from sarto.storage.buckets.store import STALE_SECONDS, Buckets, Conditions, ObjectFields, StoredObject
from sarto.storage.buckets.uploads import SESSION_SECONDS, Upload, Uploads
from sarto.system.files import disk
from tests.storage.conftest import OWNER, STRANGER


@pytest.fixture
def uploads(buckets: Buckets) -> Uploads:
    return Uploads(buckets)


def begin(uploads: Uploads, kind: str = "resumable", **more: Checksums | Conditions) -> Upload:
    return uploads.begin(kind, "data", "a", OWNER, ObjectFields(content_type="text/plain"), **more)  # type: ignore[arg-type]


def append(uploads: Uploads, upload: Upload, data: bytes, *, finish: bool = False) -> StoredObject | None:
    appender = uploads.appender(upload)
    try:
        appender.write(data)
        return appender.finish() if finish else None
    finally:
        appender.close()


def left(uploads: Uploads) -> list[Path]:
    return list(uploads.buckets.content.uploads.iterdir())


def test_a_session_is_found_again_by_another_process(buckets: Buckets, uploads: Uploads, tmp_path: Path) -> None:
    upload = begin(uploads)
    append(uploads, upload, b"first,")
    later = Uploads(Buckets(buckets.database, tmp_path, buckets.sealer))
    found = later.find("resumable", upload.id, OWNER, upload.bucket)
    assert found == upload
    assert later.received(upload) == 6
    stored = append(later, upload, b"second", finish=True)
    assert stored is not None and stored.content_type == "text/plain"
    assert buckets.path(stored).read_bytes() == b"first,second"
    assert uploads.find("resumable", upload.id, OWNER, upload.bucket) == stored
    assert not left(uploads)


def test_sessions_are_walled_and_of_one_kind(uploads: Uploads) -> None:
    upload = begin(uploads)
    for kind, id, project in (
        ("resumable", upload.id, STRANGER),
        ("multipart", upload.id, OWNER),
        ("resumable", "x", OWNER),
    ):
        with pytest.raises(NotFound, match="No such upload session"):
            uploads.find(kind, id, project, "data")
    ours = uploads.begin("resumable", "data", "a", OWNER, ObjectFields(), member="user:ada")
    for bucket, member in (("other", "user:ada"), ("data", "user:ben"), ("data", "")):
        with pytest.raises(NotFound, match="No such upload session"):
            uploads.find("resumable", ours.id, OWNER, bucket, member)
    with pytest.raises(NotFound, match="bucket does not exist"):
        uploads.begin("resumable", "data", "a", STRANGER, ObjectFields())


def test_a_session_has_one_writer_at_a_time(uploads: Uploads) -> None:
    upload = begin(uploads)
    first = uploads.appender(upload)
    with pytest.raises(Unavailable):
        uploads.appender(upload)
    first.close()
    uploads.appender(upload).close()


def test_a_finished_session_takes_no_more_bytes(buckets: Buckets, uploads: Uploads) -> None:
    upload = begin(uploads)
    stored = append(uploads, upload, b"bytes", finish=True)
    assert stored is not None
    with pytest.raises(NotFound):
        uploads.appender(upload)
    assert hashlib.sha256(buckets.path(stored).read_bytes()).hexdigest() == stored.sha256


def test_of_many_who_finish_a_session_one_does(buckets: Buckets, uploads: Uploads) -> None:
    upload = begin(uploads)
    append(uploads, upload, b"bytes")

    def finish(_: int) -> bool:
        try:
            return append(uploads, upload, b"", finish=True) is not None
        except (NotFound, Unavailable):
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(finish, range(8))) == 1
    assert not left(uploads)


def test_a_refused_ending_ends_the_session(uploads: Uploads) -> None:
    wrong = begin(uploads, checksums=Checksums(md5=base64.b64encode(b"0" * 16).decode()))
    with pytest.raises(InvalidArgument, match="MD5"):
        append(uploads, wrong, b"bytes", finish=True)
    late = begin(uploads, conditions=Conditions(generation=0))
    uploads.buckets.put_bytes("data", "a", b"faster")
    with pytest.raises(ConditionNotMet):
        append(uploads, late, b"bytes", finish=True)
    for upload in (wrong, late):
        with pytest.raises(NotFound):
            uploads.find("resumable", upload.id, OWNER, upload.bucket)
    assert not left(uploads)


def test_equal_bytes_that_are_stored_already_leave_no_file_behind(uploads: Uploads) -> None:
    uploads.buckets.put_bytes("data", "b", b"bytes")
    append(uploads, begin(uploads), b"bytes", finish=True)
    assert not left(uploads)


def test_sweep_ends_old_sessions_and_keeps_young_ones(uploads: Uploads) -> None:
    young, parts = begin(uploads), begin(uploads, "multipart")
    append(uploads, young, b"x")
    stray = uploads.buckets.content.uploads / f"{'0' * 48}.bytes"
    stray.touch()
    assert uploads.sweep(time.time() + STALE_SECONDS + 5) == 0
    assert not stray.exists()
    assert uploads.find("resumable", young.id, OWNER, young.bucket) == young
    assert uploads.sweep(time.time() + SESSION_SECONDS + 5) == 2
    assert not left(uploads)
    for upload, kind in ((young, "resumable"), (parts, "multipart")):
        with pytest.raises(NotFound):
            uploads.find(kind, upload.id, OWNER, upload.bucket)


def test_a_full_disk_is_named() -> None:
    with pytest.raises(ResourceExhausted, match="disk"), disk():
        raise OSError(28, "No space left on device")
    with pytest.raises(PermissionError), disk():
        raise PermissionError
