"""How clients get tokens: key files, identity tokens, the metadata server, the external-account exchange."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import jwt
import pytest
from google.auth import identity_pool
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2 import service_account

from .conftest import PARENT
from .service import SCOPES, Service

JOBS = f"/v1/{PARENT}/tuningJobs"
METADATA = {"Metadata-Flavor": "Google"}


def works(service: Service, token: str) -> bool:
    answer = httpx.get(f"{service.address}{JOBS}", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code == 200


def test_the_key_file_is_private_and_points_here(service: Service) -> None:
    assert service.key_file.stat().st_mode & 0o777 == 0o600
    assert service.key["token_uri"] == f"{service.address}/token"
    assert service.key["type"] == "service_account" and service.key["project_id"] == "demo"


def test_jwt_bearer_grant_as_form_and_as_json(service: Service) -> None:
    assert works(service, service.token())
    credentials = service.credentials()
    assertion = credentials._make_authorization_grant_assertion().decode()
    body = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
    for answer in (
        httpx.post(f"{service.address}/token", data=body),
        httpx.post(f"{service.address}/token", json=body),
    ):
        assert answer.status_code == 200 and works(service, answer.json()["access_token"])
    refused = httpx.post(f"{service.address}/token", data=body | {"assertion": "x.y.z"})
    assert refused.status_code == 400 and refused.json()["error"] == "invalid_grant"


@pytest.mark.parametrize("audience", ["https://us-central1-aiplatform.googleapis.com/", None])
def test_self_signed_token_by_audience_and_by_scope(service: Service, audience: str | None) -> None:
    scopes = None if audience else SCOPES
    credentials = service_account.Credentials.from_service_account_file(str(service.key_file), scopes=scopes)
    credentials = credentials.with_always_use_jwt_access(True)
    credentials._create_self_signed_jwt(audience)
    credentials.refresh(Request())
    assert jwt.get_unverified_header(credentials.token)["alg"] == "RS256"
    assert works(service, credentials.token)


def test_identity_token_as_gcloud_asks_for_it(service: Service) -> None:
    credentials = service_account.IDTokenCredentials.from_service_account_file(
        str(service.key_file), target_audience="32555940559.apps.googleusercontent.com"
    )
    credentials.refresh(Request())
    keys = httpx.get(f"{service.address}/oauth2/v3/certs").json()
    claims = jwt.decode(
        credentials.token, jwt.PyJWK(keys["keys"][0]), algorithms=["RS256"], audience=credentials._target_audience
    )
    assert claims["email"] == service.key["client_email"]
    assert not works(service, credentials.token)


def test_metadata_server_signs_in_python(service: Service) -> None:
    program = (
        "import google.auth, google.auth.transport.requests as t\n"
        "credentials, project = google.auth.default()\n"
        "credentials.refresh(t.Request())\n"
        "print(project, credentials.service_account_email, credentials.token)"
    )
    place = f"127.0.0.1:{service.port}"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GOOGLE_")} | {"HOME": "/nonexistent"}
    environ |= {"GCE_METADATA_HOST": place, "GCE_METADATA_IP": place, "CLOUDSDK_CONFIG": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    project, email, token = done.stdout.split()
    assert (project, email) == ("demo", service.key["client_email"]) and works(service, token)


def test_metadata_paths_that_node_asks(service: Service) -> None:
    base = f"{service.address}/computeMetadata/v1"
    for path in ("", "/", "/instance", "/project/project-id", "/instance/service-accounts/default/email"):
        answer = httpx.get(base + path, headers=METADATA)
        assert answer.status_code == 200 and answer.headers["metadata-flavor"] == "Google", path
    scopes = {"scopes": "https://www.googleapis.com/auth/cloud-platform"}
    answer = httpx.get(f"{base}/instance/service-accounts/default/token", params=scopes, headers=METADATA)
    assert works(service, answer.json()["access_token"])
    info = httpx.get(f"{base}/instance/service-accounts/default/", params={"recursive": "true"}, headers=METADATA)
    assert info.json()["email"] == service.key["client_email"]
    identity = httpx.get(f"{base}/instance/service-accounts/default/identity?audience=me", headers=METADATA)
    assert jwt.decode(identity.text, options={"verify_signature": False})["aud"] == "me"


def test_metadata_needs_its_header_and_no_proxy(service: Service) -> None:
    url = f"{service.address}/computeMetadata/v1/instance/service-accounts/default/token"
    assert httpx.get(url).status_code == 403
    assert httpx.get(url, headers=METADATA | {"X-Forwarded-For": "10.0.0.1"}).status_code == 403


def test_external_account_exchange(service: Service, tmp_path: Path) -> None:
    subject = tmp_path / "subject.json"
    subject.write_text(json.dumps({"token": service.token()}))
    credentials = identity_pool.Credentials.from_info(
        {
            "type": "external_account",
            "audience": "//iam.googleapis.com/locations/global/workforcePools/sarto/providers/sarto",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"{service.address}/sts/token",
            "credential_source": {
                "file": str(subject),
                "format": {"type": "json", "subject_token_field_name": "token"},
            },
        },
        scopes=SCOPES,
    )
    session = AuthorizedSession(credentials)
    assert session.get(f"{service.address}{JOBS}").status_code == 200
    subject.write_text(json.dumps({"token": "forged"}))
    with pytest.raises(Exception, match="invalid_grant"):
        credentials.refresh(Request())
