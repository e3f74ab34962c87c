"""Short-lived tokens of a service account, made by whoever holds `roles/iam.serviceAccountTokenCreator` on it.

Used by the door of the IAM credentials methods; `auth` signs and verifies.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from sarto.control import accounts, iam, service_accounts
from sarto.control.auth import MAX_LIFE_SECONDS, Authenticator, Principal
from sarto.errors import FailedPrecondition, InvalidArgument

WHOLE_SECONDS = "%Y-%m-%dT%H:%M:%SZ"
"""The official library reads no other form here."""


def access_token(
    authenticator: Authenticator, principal: Principal, project: str, email: str, seconds: float
) -> dict[str, str]:
    """A bearer that stands for the account until it ends, an hour at most. Raises PermissionDenied, InvalidArgument,
    FailedPrecondition."""
    account = _account(authenticator, principal, "iam.serviceAccounts.getAccessToken", project, email)
    if not 0 < seconds <= MAX_LIFE_SECONDS:
        raise InvalidArgument.field("lifetime", f"{seconds:g} s is not allowed; at most {MAX_LIFE_SECONDS} s.")
    made = authenticator.issue_for(account, seconds)
    expiry = datetime.fromtimestamp(time.time() + made["expires_in"], UTC)
    return {"accessToken": made["access_token"], "expireTime": expiry.strftime(WHOLE_SECONDS)}


def identity_token(
    authenticator: Authenticator, principal: Principal, project: str, email: str, audience: str
) -> dict[str, str]:
    """Says to `audience` who the account is; never a bearer here."""
    account = _account(authenticator, principal, "iam.serviceAccounts.getOpenIdToken", project, email)
    if not audience:
        raise InvalidArgument.field("audience", "Required field is not set.")
    return {"token": authenticator.identity_token(account, audience)}


def _account(
    authenticator: Authenticator, principal: Principal, permission: str, project: str, email: str
) -> service_accounts.ServiceAccount:
    database = authenticator.database
    number = iam.require(database, principal, permission, project, f"serviceAccounts/{email}").number
    found = accounts.find(database, number, email)
    if found.disabled:
        raise FailedPrecondition(f"Service account {email} is disabled; enable it, and ask again.")
    return service_accounts.ServiceAccount(found.email, found.project, found.unique_id, False)
