"""The small base with its real weights, where `sarto models pull` has put it."""

from __future__ import annotations

import pytest

from sarto.catalog import Catalog
from sarto.contract.common import BaseWeights
from sarto.errors import FailedPrecondition


@pytest.fixture(scope="session")
def real_base() -> BaseWeights:
    catalog = Catalog.load()
    try:
        return catalog.base(catalog.weights["smollm2-135m-instruct"])
    except FailedPrecondition as error:
        pytest.skip(error.message)
