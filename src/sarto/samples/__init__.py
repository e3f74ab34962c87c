"""Substitutes for the sample datasets that the tuning documentation names, written for Sarto: articles and summaries.

`install_samples` puts them into a home's buckets under the documented names, so the documentation's snippets run
unchanged.
"""

from __future__ import annotations

from importlib import resources

from sarto.errors import NotFound
from sarto.storage.buckets.store import Buckets

BUCKET = "cloud-samples-data"
OWNER = "0"
"""No project: the bucket is readable by all and writable by none."""
FOLDERS = tuple(f"ai-platform/generative_ai/{family}/text" for family in ("gemini", "gemini-1_5", "gemini-2_0"))
FILES = ("sft_train_data.jsonl", "sft_validation_data.jsonl")


def validation_rows() -> list[bytes]:
    """Every row of the validation sample."""
    return resources.files(__name__).joinpath(FILES[1]).read_bytes().splitlines()


def install_samples(buckets: Buckets) -> None:
    """Make the sample bucket, or bring it up to what this version ships. Safe to repeat."""
    try:
        buckets.bucket(BUCKET)
    except NotFound:
        buckets.create_bucket(OWNER, BUCKET, is_public=True)
    for file in FILES:
        data = resources.files(__name__).joinpath(file).read_bytes()
        for folder in FOLDERS:
            _bring_up(buckets, f"{folder}/{file}", data)


def _bring_up(buckets: Buckets, name: str, data: bytes) -> None:
    try:
        if buckets.path(buckets.stat(BUCKET, name)).read_bytes() == data:
            return
    except NotFound:
        pass
    buckets.put_bytes(BUCKET, name, data, content_type="application/jsonl")
