from __future__ import annotations

import pytest

from sarto.conversations.examples import parse_line
from sarto.errors import PermissionDenied
from sarto.samples import FILES, install_samples
from sarto.storage.buckets.store import Buckets
from tests.storage.conftest import OWNER

ROOT = "gs://cloud-samples-data/ai-platform/generative_ai"


@pytest.mark.parametrize("family", ["gemini", "gemini-1_5", "gemini-2_0"])
def test_the_documented_names_hold_rows_that_can_be_tuned_on(buckets: Buckets, family: str) -> None:
    install_samples(buckets)
    articles: set[str] = set()
    for file, count in zip(FILES, (60, 15), strict=True):
        found = buckets.resolve(f"{ROOT}/{family}/text/{file}", project=OWNER)
        lines = buckets.path(found).read_bytes().splitlines()
        assert len(lines) == count
        for number, raw in enumerate(lines, 1):
            example = parse_line(raw, number)
            assert [turn.role for turn in example.turns] == ["system", "user", "model"]
            article, summary = example.turns[1].text, example.turns[2].text
            assert 10 <= len(summary.split()) < len(article.split()) / 1.5
            articles.add(article.partition("\n\n")[0])
    assert len(articles) == 75


def test_installing_again_changes_nothing_and_nobody_writes_there(buckets: Buckets) -> None:
    install_samples(buckets)
    before = buckets.list("cloud-samples-data").objects
    install_samples(buckets)
    assert buckets.list("cloud-samples-data").objects == before
    with pytest.raises(PermissionDenied):
        buckets.put_bytes("cloud-samples-data", before[0].name, b"mine", project=OWNER)


def test_an_older_sample_is_replaced(buckets: Buckets) -> None:
    install_samples(buckets)
    name = buckets.list("cloud-samples-data").objects[0].name
    new = buckets.stat("cloud-samples-data", name)
    buckets.put_bytes("cloud-samples-data", name, b"old")
    install_samples(buckets)
    assert buckets.stat("cloud-samples-data", name).sha256 == new.sha256
