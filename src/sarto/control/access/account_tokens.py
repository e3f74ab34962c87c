"""Short-lived tokens of a service account, for callers with `roles/iam.serviceAccountTokenCreator` on it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from sarto.control.access import account_store, authorization, service_accounts
from sarto.control.access.authentication import MAX_LIFE_SECONDS, Authenticator
from sarto.control.access.principal import Principal
from sarto.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from sarto.storage.database.database import Database

WHOLE_SECONDS = "%Y-%m-%dT%H:%M:%SZ"
"""Time format without fractions, the only one that the official library reads."""


def access_token(
    authenticator: Authenticator, principal: Principal, project: str, email: str, seconds: float
) -> dict[str, str]:
    """An access token for the account, valid for an hour at most. Raises PermissionDenied, InvalidArgument,
    FailedPrecondition."""
    account = _account(authenticator, principal, "iam.serviceAccounts.getAccessToken", project, email)
    if not 0 < seconds <= MAX_LIFE_SECONDS:
        raise InvalidArgument.field("lifetime", f"{seconds:g} s is not allowed; at most {MAX_LIFE_SECONDS} s.")
    token = authenticator.issue_for(account, seconds)
    expiry = datetime.fromtimestamp(time.time() + token["expires_in"], UTC)
    return {"accessToken": token["access_token"], "expireTime": expiry.strftime(WHOLE_SECONDS)}


def identity_token(
    authenticator: Authenticator, principal: Principal, project: str, email: str, audience: str
) -> dict[str, str]:
    """An ID token of the account for `audience`. This service does not accept it as an access token."""
    account = _account(authenticator, principal, "iam.serviceAccounts.getOpenIdToken", project, email)
    if not audience:
        raise InvalidArgument.field("audience", "Required field is not set.")
    return {"token": authenticator.identity_token(account, audience)}


def of_this_machine(authenticator: Authenticator, email: str) -> account_store.ServiceAccount:
    """The account of the metadata server. Raises FailedPrecondition, PermissionDenied."""
    check_bounded(authenticator.database, email)
    account = account_store.find_enabled_by_email(authenticator.database, email)
    if account is None:
        raise FailedPrecondition(f"metadata_server: {email} does not exist or is disabled; create or enable it.")
    return account


def check_bounded(database: Database, email: str) -> None:
    """Raises PermissionDenied for an account with a role on the service, for which no token is issued without a
    sign-in."""
    if authorization.is_of_service(database, "", f"serviceAccounts/{email}"):
        raise PermissionDenied(
            f"metadata_server: {email} has a role on the whole service; name an account with just the roles it needs."
        )


def _account(
    authenticator: Authenticator, principal: Principal, permission: str, project: str, email: str
) -> account_store.ServiceAccount:
    database = authenticator.database
    number = authorization.require(database, principal, permission, project, f"serviceAccounts/{email}").number
    account = service_accounts.find(database, number, email)
    if account.disabled:
        raise FailedPrecondition(f"Service account {email} is disabled; enable it and try again.")
    return account_store.ServiceAccount(account.email, account.project, account.unique_id, False)
