"""The roles the documentation lists are those there are."""

from __future__ import annotations

import re
from pathlib import Path

from sarto.control.access.roles import ROLES, grants

PAGE = Path(__file__).parents[3] / "docs" / "security.md"


def test_the_security_page_lists_every_role_and_no_other() -> None:
    assert set(re.findall(r"^\| `(roles/[\w.]+)` \|", PAGE.read_text(encoding="utf-8"), re.M)) == set(ROLES)


def test_roles_hold_what_their_names_say() -> None:
    held = {
        ("roles/aiplatform.user", "aiplatform.tuningJobs.create"): True,
        ("roles/aiplatform.user", "aiplatform.models.setIamPolicy"): False,
        ("roles/aiplatform.user", "storage.objects.get"): False,
        ("roles/aiplatform.viewer", "aiplatform.tuningJobs.get"): True,
        ("roles/aiplatform.viewer", "aiplatform.tuningJobs.cancel"): False,
        ("roles/aiplatform.tuningServiceAgent", "storage.objects.get"): False,
        ("roles/iam.serviceAccountAdmin", "iam.serviceAccounts.actAs"): False,
        ("roles/iam.serviceAccountAdmin", "iam.serviceAccountKeys.create"): False,
        ("roles/cloudkms.admin", "cloudkms.cryptoKeyVersions.useToDecrypt"): False,
        ("roles/cloudkms.cryptoKeyEncrypterDecrypter", "cloudkms.cryptoKeyVersions.useToDecrypt"): True,
        ("roles/owner", "resourcemanager.projects.create"): False,
        ("roles/nothing", "aiplatform.models.get"): False,
    }
    assert {cell: grants(*cell) for cell in held} == held
