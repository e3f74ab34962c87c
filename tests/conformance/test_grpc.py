"""gRPC over TLS: the documentation's snippet with nothing but `api_endpoint` added, and the local CA in a variable."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .canaries import MODEL, Planted, plant, shown_to_others, written
from .conftest import PARENT
from .service import Service, training_rows, upload, wait_for

pytest.importorskip("grpc", reason="the extra sarto[grpc] is not installed")
FLOW = Path(__file__).with_name("grpc_flow.py")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("grpc") / "home")
    output = service.home.parent / "output"
    service.start("--grpc-port", "0", output=str(output), SARTO_AUDIT_DATA_ACCESS="true")
    yield service
    assert service.stop() == 0
    assert not (service.home / "grpc_address").exists()


def run(service: Service, *arguments: str, trusted: bool = True) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "GOOGLE_APPLICATION_CREDENTIALS": str(service.key_file)}
    if trusted:
        environ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"] = str(service.home / "tls" / "ca.pem")
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def place(served: Service) -> str:
    return (served.home / "grpc_address").read_text().strip()


@pytest.fixture(scope="module")
def seen(served: Service, place: str) -> dict[str, Any]:
    with served.http() as http:
        dataset = upload(http, "grpc-data", "train.jsonl", training_rows())
    done = run(served, str(FLOW), place, dataset)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_address_is_a_name_that_the_certificate_covers(place: str) -> None:
    assert re.fullmatch(r"localhost:\d+", place)


def test_train_refresh_list_and_rebase(seen: dict[str, Any]) -> None:
    assert seen["succeeded"] and seen["state"] == "JOB_STATE_SUCCEEDED"
    assert "/models/" in seen["model"] and "/endpoints/" in seen["endpoint"]
    assert seen["name"] in seen["listed"]
    assert seen["cancelled"] == "JOB_STATE_CANCELLED"


def test_the_mode_of_full_tuning_travels_as_its_number(served: Service, seen: dict[str, Any]) -> None:
    name, state = seen["full"]
    assert state == "JOB_STATE_SUCCEEDED"
    with served.http() as http:
        assert http.get(f"/v1/{name}").json()["supervisedTuningSpec"]["tuningMode"] == "TUNING_MODE_FULL"


def test_the_experiment_is_readable(seen: dict[str, Any]) -> None:
    assert seen["experiment"].startswith("tuning-experiment-")
    assert "metric.train_total_loss" in seen["columns"]


def test_generation_unary_and_streamed_agree(seen: dict[str, Any]) -> None:
    assert seen["streamed"] == seen["text"]
    assert seen["prompt_tokens"] == seen["counted"] and seen["computed"]


def test_errors_keep_code_and_message(seen: dict[str, Any]) -> None:
    kinds = {name: kind for name, (kind, _) in seen["errors"].items()}
    assert kinds == {
        "adapter": "InvalidArgument",
        "model": "InvalidArgument",
        "job": "NotFound",
        "stream": "NotFound",
        "project": "PermissionDenied",
    }
    assert "adapter" in seen["errors"]["adapter"][1] and "gemini-9" in seen["errors"]["model"][1]


RAW = """
import sys, grpc
from google.cloud.aiplatform_v1.types import GetTuningJobRequest
root = open(sys.argv[2], "rb").read()
channel = grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials(root))
for path in ("google.cloud.aiplatform.v1.GenAiTuningService/GetTuningJob", "google.cloud.aiplatform.v1.No/Such"):
    call = channel.unary_unary("/" + path, request_serializer=GetTuningJobRequest.serialize)
    try:
        call(GetTuningJobRequest(name="projects/demo/locations/us-central1/tuningJobs/7"), timeout=20)
    except grpc.RpcError as error:
        print(error.code().name)
"""


NEWER = """
import sys, grpc
from google.cloud.aiplatform_v1.types import CreateTuningJobRequest, TuningJob
address, root, token, *bodies = sys.argv[1:]
channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(open(root, "rb").read()))
create = channel.unary_unary("/google.cloud.aiplatform.v1.GenAiTuningService/CreateTuningJob")
for body in bodies:
    job = TuningJob.serialize(TuningJob(base_model="gemini-2.0-flash-001")) + bytes.fromhex(body)
    request = CreateTuningJobRequest(parent="projects/demo/locations/us-central1")
    request = CreateTuningJobRequest.serialize(request) + bytes([0x12, len(job)]) + job
    try:
        create(request, timeout=20, metadata=[("authorization", f"Bearer {token}")])
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""


def test_a_method_that_no_public_message_has_is_refused_by_name(served: Service, place: str) -> None:
    """As a client with newer messages sends it, or one without any."""
    spec_of_field_50 = "9203020a00"
    done = run(served, "-W", "ignore", "-c", NEWER, place, str(served.home / "tls" / "ca.pem"), served.token(),
               spec_of_field_50, "")  # fmt: skip
    newer, without = done.stdout.splitlines()
    assert newer.startswith("INVALID_ARGUMENT") and "field 50 of google.cloud.aiplatform.v1.TuningJob" in newer
    assert "preferenceOptimizationSpec" in newer and "REST" in newer
    assert without.startswith("INVALID_ARGUMENT") and "preference" in without.lower()


DISTIL = """
import sys, grpc
from google.cloud.aiplatform_v1beta1.types import CancelTuningJobRequest, CreateTuningJobRequest, TuningJob
address, root, token, dataset = sys.argv[1:]
channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(open(root, "rb").read()))
service, signed = "/google.cloud.aiplatform.v1beta1.GenAiTuningService/", [("authorization", f"Bearer {token}")]
create = channel.unary_unary(
    service + "CreateTuningJob", request_serializer=CreateTuningJobRequest.serialize,
    response_deserializer=TuningJob.deserialize,
)
job = {"distillation_spec": {
    "training_dataset_uri": dataset, "student_model": "gemini-2.0-flash-001", "base_teacher_model": "gemini-2.5-flash",
    "hyper_parameters": {"epoch_count": 1, "adapter_size": 2}, "pipeline_root_directory": "gs://grpc-data/root",
}}
parent = "projects/demo/locations/us-central1"
made = create(CreateTuningJobRequest(parent=parent, tuning_job=job), timeout=20, metadata=signed)
print(made.base_model, made.distillation_spec.student_model, made.distillation_spec.hyper_parameters.adapter_size.name)
cancel = channel.unary_unary(service + "CancelTuningJob", request_serializer=CancelTuningJobRequest.serialize)
cancel(CancelTuningJobRequest(name=made.name), timeout=20, metadata=signed)
"""


def test_the_deprecated_form_of_distillation_travels_in_its_message(served: Service, place: str) -> None:
    with served.http() as http:
        dataset = upload(http, "grpc-data", "prompts.jsonl", training_rows())
    root = str(served.home / "tls" / "ca.pem")
    done = run(served, "-W", "ignore", "-c", DISTIL, place, root, served.token(), dataset)
    assert done.stdout.split() == ["gemini-2.0-flash-001", "gemini-2.0-flash-001", "ADAPTER_SIZE_FOUR"], done.stderr


def test_without_a_token_and_without_such_a_method(served: Service, place: str) -> None:
    done = run(served, "-W", "ignore", "-c", RAW, place, str(served.home / "tls" / "ca.pem"))
    assert done.stdout.split() == ["UNAUTHENTICATED", "UNIMPLEMENTED"], done.stderr


SPEAK = """
import sys, grpc
from google.cloud.aiplatform_v1.types import Content, CountTokensRequest, GenerateContentRequest, Part
address, root, token, model, *words = sys.argv[1:]
channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(open(root, "rb").read()))
place = "/google.cloud.aiplatform.v1."
for number, (path, kind, method) in enumerate([
    ("PredictionService/GenerateContent", GenerateContentRequest, "unary_unary"),
    ("PredictionService/StreamGenerateContent", GenerateContentRequest, "unary_stream"),
    ("LlmUtilityService/CountTokens", CountTokensRequest, "unary_unary"),
]):
    named = {"endpoint" if kind is CountTokensRequest else "model": model}
    call = getattr(channel, method)(place + path, request_serializer=kind.serialize)
    for word, role in ((words[2 * number], "user"), (words[2 * number + 1], words[2 * number + 1])):
        request = kind(contents=[Content(role=role, parts=[Part(text=word)])], **named)
        if kind is GenerateContentRequest:
            request.generation_config.max_output_tokens = 2
        try:
            answer = call(request, timeout=30, metadata=[("authorization", f"Bearer {token}")])
            list(answer) if method == "unary_stream" else answer
            print("OK")
        except grpc.RpcError as error:
            print(error.code().name)
"""


def test_no_door_lets_what_it_was_given_into_logs_or_to_others(served: Service, place: str) -> None:
    planted = Planted()
    made = plant(served, planted)
    doors = [
        f"{verdict}grpc {name}" for name in ("GenerateContent", "StreamGenerateContent", "CountTokens")
        for verdict in ("", "bad ")
    ]  # fmt: skip
    name, root = f"{PARENT}/{MODEL}", str(served.home / "tls" / "ca.pem")
    arguments = (place, root, served.token(), name, *map(planted.word, doors))
    done = run(served, "-W", "ignore", "-c", SPEAK, *arguments)
    assert done.stdout.split() == ["OK", "INVALID_ARGUMENT"] * 3, done.stdout + done.stderr
    for door, status in planted.statuses.items():
        assert status < 500 and (status == 200 or door.startswith("bad")), (door, status)
    assert sum(status >= 400 for status in planted.statuses.values()) > 15
    assert len(planted.words) > 30
    others = shown_to_others(served, made)
    entries = audited(served, "GenerateContent")
    output = (served.home.parent / "output").read_text()
    found = {where: planted.found_in(text) for where, text in (others | written(served, output)).items()}
    assert {where: doors for where, doors in found.items() if doors} == {}
    assert entries > 5, "uses of data have entries here, and no words in them"


def audited(service: Service, method: str) -> int:
    """How many entries there are of the method; they are written a moment behind the answers."""
    with service.http() as http:

        def read() -> int:
            body = {"resourceNames": ["projects/demo"], "pageSize": 1000}
            return http.post("/v2/entries:list", json=body).text.count(f'.{method}"')

        return int(wait_for(read))


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    program = (
        "import sys; sys.modules['grpc'] = None\nfrom sarto.cli import main\n"
        f"sys.argv = ['sarto', 'serve', '--port', '0', '--grpc-port', '0', '--home', {home!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode not in (0, None)
    assert "pip install 'sarto[grpc]'" in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
