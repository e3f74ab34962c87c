from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarto.storage.buckets import bucket_rows, listing
from sarto.storage.buckets.objects import ObjectFields, StoredObject
from sarto.storage.database.database import Database
from sarto.storage.database.tables import stored_object
from tests.storage.conftest import ON_BOTH

NAMES = st.text(st.sampled_from(["a", "b", "/", ".", "\ud7ff", "\ue000", "\U0010ffff"]), min_size=1, max_size=5)


def row(name: str) -> dict[str, object]:
    hashes = {"sha256": "0" * 64, "md5": "", "crc32c": "", "content_type": "text/plain"}
    return bucket_rows.object_values(
        StoredObject("b", name, 1, 1, 0, **hashes, fields=ObjectFields(), create_time=0, update_time=0)  # type: ignore[arg-type]
    )


def expected(names: set[str], prefix: str, delimiter: str, start: str, end: str) -> list[tuple[str, bool]]:
    """What a listing must give, by the plainest reading of the rules: entries, and whether each is a prefix."""
    given: list[tuple[str, bool]] = []
    for name in sorted(names):
        if not name.startswith(prefix) or name < start or (end and name >= end):
            continue
        at = name.find(delimiter, len(prefix)) if delimiter else -1
        entry = (name, False) if at < 0 else (name[: at + len(delimiter)], True)
        if entry not in given:
            given.append(entry)
    return given


@ON_BOTH
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), names=st.sets(NAMES, max_size=14), batch=st.integers(1, 6))
def test_pages_give_every_name_or_prefix_once(
    database: Database, data: st.DataObject, names: set[str], batch: int
) -> None:
    with pytest.MonkeyPatch.context() as patch, database.transaction() as connection:
        patch.setattr(listing, "_BATCH", batch)  # so that batches end in the middle of groups
        connection.execute(stored_object.delete())
        if names:
            connection.execute(stored_object.insert(), [row(name) for name in names])
        for _ in range(8):
            prefix, start, end = (data.draw(st.one_of(st.just(""), NAMES)) for _ in range(3))
            delimiter = data.draw(st.sampled_from(["", "/", "b", "/."]))
            limit = data.draw(st.integers(1, 4))
            entries: list[tuple[str, bool]] = []
            token = ""
            while True:
                query = listing.Query("b", prefix, delimiter, start, end, limit, token, False)
                found, prefixes, token = listing.page(connection, query)
                assert len(found) + len(prefixes) <= limit
                entries += sorted([(one.name, False) for one in found] + [(one, True) for one in prefixes])
                if not token:
                    break
            assert entries == sorted(expected(names, prefix, delimiter, start, end))
