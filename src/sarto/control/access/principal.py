"""The caller of a control function."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Principal:
    """The caller: a service account, or a user of an OIDC provider. Policies have its rights.

    `project` is the number of an account's project; a user has none."""

    email: str
    project: str
    kind: str = "serviceAccount"
    key_project: str = ""
    """The number of the project that the caller's API key names, for requests without a project; else empty."""

    @property
    def member(self) -> str:
        """The form in policies: `serviceAccount:E`, `user:E`, or `principal://…/subject/S`."""
        return f"{self.kind}:{self.email}"
