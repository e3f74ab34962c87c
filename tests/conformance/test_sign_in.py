"""How clients get tokens: key files, identity tokens, the metadata server, the external-account exchange."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from google.auth import identity_pool, impersonated_credentials
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2 import service_account

from .conftest import PARENT
from .service import METADATA_ACCOUNT, SCOPES, Service

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
    assert (project, email) == ("demo", METADATA_ACCOUNT) and works(service, token)


def test_metadata_paths_that_node_asks(service: Service) -> None:
    base = f"{service.address}/computeMetadata/v1"
    for path in ("", "/", "/instance", "/project/project-id", "/instance/service-accounts/default/email"):
        answer = httpx.get(base + path, headers=METADATA)
        assert answer.status_code == 200 and answer.headers["metadata-flavor"] == "Google", path
    scopes = {"scopes": "https://www.googleapis.com/auth/cloud-platform"}
    answer = httpx.get(f"{base}/instance/service-accounts/default/token", params=scopes, headers=METADATA)
    assert works(service, answer.json()["access_token"])
    info = httpx.get(f"{base}/instance/service-accounts/default/", params={"recursive": "true"}, headers=METADATA)
    assert info.json()["email"] == METADATA_ACCOUNT
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


@pytest.fixture(scope="module")
def grace(http: httpx.Client) -> str:
    """A provider's user who may use everything of tuning, and make tokens of one account that may only look."""
    account = {"accountId": "viewer-account"}
    http.post("/v1/projects/demo/serviceAccounts", json=account).raise_for_status()
    email, user = "viewer-account@demo.iam.gserviceaccount.com", "user:grace@example.com"
    bind(http, "/v3/projects/demo", "roles/aiplatform.user", user)
    bind(http, "/v3/projects/demo", "roles/aiplatform.viewer", f"serviceAccount:{email}")
    bind(http, f"/v1/projects/demo/serviceAccounts/{email}", "roles/iam.serviceAccountTokenCreator", user)
    return email


def bind(http: httpx.Client, resource: str, role: str, member: str) -> None:
    policy = http.post(f"{resource}:getIamPolicy", json={}).json()
    policy["bindings"] = [*policy.get("bindings", []), {"role": role, "members": [member]}]
    http.post(f"{resource}:setIamPolicy", json={"policy": policy}).raise_for_status()


def external_account(service: Service, token_file: Path, account: str = "") -> identity_pool.Credentials:
    info: dict[str, Any] = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/locations/global/workforcePools/sarto/providers/sarto",
        "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
        "token_url": f"{service.address}/sts/token",
        "credential_source": {"file": str(token_file)},
    }
    if account:
        place = f"{service.address}/v1/projects/-/serviceAccounts"
        info["service_account_impersonation_url"] = f"{place}/{account}:generateAccessToken"
    return identity_pool.Credentials.from_info(info, scopes=SCOPES)


def test_a_providers_user_signs_in_by_an_external_account_file(service: Service, grace: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(service.user_token("grace@example.com"))
    session = AuthorizedSession(external_account(service, file))
    assert session.get(f"{service.address}{JOBS}").status_code == 200
    who = session.post(
        f"{service.address}/v3/projects/demo:testIamPermissions",
        json={"permissions": ["aiplatform.tuningJobs.create", "iam.serviceAccountKeys.create"]},
    )
    assert who.json() == {"permissions": ["aiplatform.tuningJobs.create"]}
    for wrong in (service.user_token("grace@example.com", aud="other"), service.user_token("grace@example.com", exp=1)):
        file.write_text(wrong)
        with pytest.raises(Exception, match="invalid_grant"):
            external_account(service, file).refresh(Request())


def test_a_user_acts_as_an_account_with_short_lived_tokens(service: Service, grace: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(service.user_token("grace@example.com"))
    credentials = external_account(service, file, grace)
    session = AuthorizedSession(credentials)
    assert session.get(f"{service.address}{JOBS}").status_code == 200
    assert session.post(f"{service.address}{JOBS}", json={}).status_code == 403  # the account may look, not tune
    claims = jwt.decode(credentials.token, options={"verify_signature": False})
    assert claims["sub"] == grace and claims["exp"] - claims["iat"] == 3600


def test_an_administrator_impersonates_by_the_official_library(service: Service, grace: str) -> None:
    place = f"{service.address}/v1/projects/-/serviceAccounts/{grace}"
    credentials = impersonated_credentials.Credentials(
        source_credentials=service.credentials(), target_principal=grace, target_scopes=SCOPES, lifetime=300,
        iam_endpoint_override=f"{place}:generateAccessToken",
    )  # fmt: skip
    session = AuthorizedSession(credentials)
    assert session.get(f"{service.address}{JOBS}").status_code == 200
    assert session.post(f"{service.address}{JOBS}", json={}).status_code == 403
    claims = jwt.decode(credentials.token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 300


def test_a_short_lived_token_ends_with_its_account(service: Service, http: httpx.Client, grace: str) -> None:
    path = f"/v1/projects/demo/serviceAccounts/{grace}"
    body = {"scope": SCOPES, "lifetime": "60s"}
    made = http.post(f"{path}:generateAccessToken", json=body).json()
    assert works(service, made["accessToken"]) and made["expireTime"].endswith("Z")
    http.post(f"{path}:disable").raise_for_status()
    assert not works(service, made["accessToken"])
    again = http.post(f"{path}:generateAccessToken", json=body)
    assert again.status_code == 400 and again.json()["error"]["status"] == "FAILED_PRECONDITION"
    http.post(f"{path}:enable").raise_for_status()
    assert works(service, made["accessToken"])
    for wrong in ({"lifetime": "3601s"}, {"scope": []}, {"delegates": ["x"]}, {"lifetime": "soon"}):
        assert http.post(f"{path}:generateAccessToken", json=body | wrong).status_code == 400, wrong
    identity = http.post(f"{path}:generateIdToken", json={"audience": "me", "includeEmail": True}).json()["token"]
    keys = httpx.get(f"{service.address}/oauth2/v3/certs").json()
    assert jwt.decode(identity, jwt.PyJWK(keys["keys"][0]), ["RS256"], audience="me")["email"] == grace


def test_who_may_not_make_tokens_of_an_account_makes_none(service: Service, http: httpx.Client, grace: str) -> None:
    bind(http, "/v3/projects/demo", "roles/owner", "user:mallory@example.com")
    bind(http, "/v3/projects/demo", "roles/iam.serviceAccountAdmin", "user:sam@example.com")
    path = f"/v1/projects/-/serviceAccounts/{grace}:generateAccessToken"
    for email, status in (("mallory@example.com", 200), ("sam@example.com", 403), ("nobody@example.com", 403)):
        headers = {"Authorization": f"Bearer {service.user_token(email)}"}
        answer = httpx.post(service.address + path, json={"scope": SCOPES}, headers=headers)
        assert answer.status_code == status, (email, answer.text)
