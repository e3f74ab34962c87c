"""Requests made from `/openapi.json`, sound and unsound, to the real service: no 5xx, and every answer as described.

`SARTO_FUZZ_CASES` is how many cases each operation gets; `make fuzz` runs the full number.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from .conftest import PARENT, ended
from .service import Service, training_rows, upload

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries that make the requests warn of each other
WHOLE = "SARTO_FUZZ_CASES" in os.environ
CASES = int(os.environ.get("SARTO_FUZZ_CASES", "5"))
WANTED = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance",
)  # fmt: skip


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of its own: what is asked of it at random also deletes."""
    service = Service(tmp_path_factory.mktemp("fuzzed") / "home")
    service.start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def known(fuzzed: Service) -> dict[str, list[str]]:
    """Ids that exist, for the places of a path: without them nearly every case would end at the first look-up."""
    with fuzzed.http() as http:
        spec = {"trainingDatasetUri": upload(http, "tuning-data", "train.jsonl", training_rows())}
        body = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec}
        tuned = ended(http, http.post(f"/v1/{PARENT}/tuningJobs", json=body).json()["name"])
    place = tuned["name"].split("/")
    model, endpoint = (tuned["tunedModel"][kind].rpartition("/")[2] for kind in ("model", "endpoint"))
    return {
        "project": ["demo", place[1]],
        "location": [place[3], "-"],
        "job": [place[5]],
        "model": [model, model.partition("@")[0], "gemini-2.0-flash-001"],
        "endpoint": [endpoint],
        "publisher": ["google"],
        "store": ["default"],
        "bucket": ["tuning-data"],
        "object": ["train.jsonl"],
    }


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def cases(operation: Any, known: dict[str, list[str]], token: str) -> st.SearchStrategy[Case]:
    """Requests of an operation, signed in, of which most name things that exist."""
    modes = [mode for mode in GenerationMode if mode is GenerationMode.POSITIVE or has_input(operation)]

    @st.composite
    def one(draw: st.DrawFn) -> Case:
        case: Case = draw(st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]))
        for name in case.path_parameters or {}:
            found = draw(st.sampled_from([*known.get(name, ()) * 3, ""]))
            if found:
                case.path_parameters[name] = found
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {token}"}
        return case

    return one()


def has_input(operation: Any) -> bool:
    return bool(list(operation.path_parameters) or list(operation.query) or operation.body)


def test_no_server_error_and_no_answer_that_is_not_described(
    fuzzed: Service, session: requests.Session, known: dict[str, list[str]]
) -> None:
    load_all_checks()
    checks = [CHECKS.get_one(name) for name in WANTED]
    schema = schemathesis.openapi.from_url(f"{fuzzed.address}/openapi.json")
    token, seen = fuzzed.token(), Counter[int]()
    faults: list[str] = []
    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in operations if WHOLE else [one for one in operations if not one.path.startswith("/v1beta1/")]:

        @settings(
            max_examples=CASES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(cases(operation, known, token))
        def ask(case: Case) -> None:
            answer = case.call(base_url=fuzzed.address, session=session, timeout=30)
            seen[answer.status_code] += 1
            try:
                case.validate_response(answer, checks=checks)
            except BaseExceptionGroup as fault:
                faults.extend(f"{case.operation.label} {answer.status_code}: {part}" for part in fault.exceptions)

        ask()
    print(f"{sum(seen.values())} cases: {dict(sorted(seen.items()))}")
    assert not faults, f"{len(faults)} faults\n" + "\n".join(sorted(set(faults))[:40])
