"""The audit log: one entry for each decision of `iam`, hash-chained. Knows no HTTP; the doors say who asks through
`Call`, `iam` notes what it decided, and the act and its entry are written in one transaction.

An entry of an act that changes something commits with the act. What changes nothing (reads, when they are recorded,
and refusals) is written in batches behind the answers; a crash may lose the last of those. A sealer chains entries.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from sarto.control.auth import Principal


@dataclass
class Call:
    """One request as the log shows it; `decisions` are not written yet."""

    request: str
    address: str
    decisions: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)


CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


def note(principal: Principal, permission: str, resource: str, project: str, is_allowed: bool) -> None:
    """Remember a decision for the log; outside a request (a run, a test) there is nobody to answer to."""
    call = CURRENT.get()
    if call is not None:
        call.decisions[permission, resource] = {
            "principal": principal.member,
            "permission": permission,
            "resource": resource,
            "project": project,
            "granted": is_allowed,
        }
