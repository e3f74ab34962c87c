"""The audit log: an entry with each act, a chain that shows every kind of tampering, on both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest
import sqlalchemy as sa

from sarto.control import audit_log, iam, tuning_jobs
from sarto.control.audit import CURRENT, Call, method_name
from sarto.control.audit_log import AuditLog
from sarto.control.context import Control
from sarto.errors import PermissionDenied
from sarto.names import LocationName
from sarto.storage.database import Database
from sarto.storage.tables import audit_entry, meta
from tests.control.homes import create, make_control, member


@contextmanager
def request(log: AuditLog, name: str = "r1") -> Iterator[Call]:
    call = Call(name, "192.0.2.7")
    mine = CURRENT.set(call)
    try:
        yield call
    finally:
        CURRENT.reset(mine)
        log.finish(call)


def written(control: Control, acts: int = 5) -> AuditLog:
    """A stopped log that holds so many creates, and a refusal."""
    log = AuditLog(control.database, data_access=False)
    log.start()
    for index in range(acts):
        with request(log, f"r{index}"):
            create(control)
    with request(log), pytest.raises(PermissionDenied):
        tuning_jobs.list_(control, iam.Principal("eve@example.com", "", "user"), LocationName("demo", "us-central1"))
    log.stop()
    return log


def test_an_act_and_a_refusal_have_an_entry_each_and_a_read_has_none(any_control: Control) -> None:
    log = written(any_control, 2)
    with request(log):
        tuning_jobs.list_(any_control, member(any_control), LocationName("demo", "us-central1"))
    rows = [json.loads(line) for line in audit_log.export(any_control.database)]
    assert [row["protoPayload"]["methodName"].rpartition(".")[2] for row in rows] == [
        "CreateTuningJob", "CreateTuningJob", "ListTuningJobs",
    ]  # fmt: skip
    act, refusal = rows[0]["protoPayload"], rows[2]["protoPayload"]
    assert act["methodName"] == "google.cloud.aiplatform.v1.GenAiTuningService.CreateTuningJob"
    assert act["authenticationInfo"]["principalEmail"] == "ada@demo.example" and act["status"] == {}
    assert act["requestMetadata"] == {"callerIp": "192.0.2.7"} and rows[0]["labels"] == {"request": "r0"}
    assert refusal["status"]["code"] == 7 and not refusal["authorizationInfo"][0]["granted"]
    verdict = audit_log.verify(any_control.database)
    assert (verdict.fault, verdict.position, verdict.unsealed) == ("", 3, 0)


def test_an_act_that_fails_leaves_no_entry_that_says_it_happened(any_control: Control) -> None:
    log = AuditLog(any_control.database, data_access=False)
    log.start()
    with request(log) as call, pytest.raises(ZeroDivisionError):
        iam.require(any_control.database, member(any_control), "aiplatform.models.delete", "demo")
        with any_control.database.transaction():
            raise ZeroDivisionError
    assert not call.decisions
    log.stop()
    assert len(list(audit_log.export(any_control.database))) == 1
    assert audit_log.verify(any_control.database).fault == ""


def _of(position: int) -> sa.ColumnElement[bool]:
    return audit_entry.c.position == position


def _swap(database: Database) -> None:
    with database.transaction() as connection:
        query = sa.select(audit_entry.c.entry).order_by(audit_entry.c.position)
        second, third = connection.execute(query).scalars().all()[1:3]
        connection.execute(audit_entry.update().where(_of(2)).values(entry=third))
        connection.execute(audit_entry.update().where(_of(3)).values(entry=second))


def _rewrite(database: Database) -> None:
    """All of it anew, with an entry changed and every hash right: only an anchor kept elsewhere shows this."""
    with database.transaction() as connection:
        last = audit_log.FIRST
        for row in connection.execute(sa.select(audit_entry).order_by(audit_entry.c.position)).all():
            entry = row.entry.replace("ada@", "bob@")
            last = audit_log.chained(last, row.position, entry)
            connection.execute(audit_entry.update().where(_of(row.position)).values(entry=entry, hash=last))
        connection.execute(meta.update().where(meta.c.key == audit_log.ANCHOR).values(value=f"{row.position}:{last}"))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("removed", "entry 3 is missing"),
        ("first", "entry 1 is missing"),
        ("changed", "entry 3 was changed"),
        ("swapped", "entry 2 was changed"),
        ("cut", "the log ends at entry 4; the anchor names entry 6"),
        ("emptied", "the log ends at entry 0"),
        ("rewritten", "not the one the anchor names"),
    ],
)
def test_tampering_is_found(any_control: Control, what: str, words: str) -> None:
    database = any_control.database
    written(any_control)
    before = audit_log.verify(database)
    assert before.fault == "" and before.position == 6
    with database.transaction() as connection:
        for name, where in (("removed", _of(3)), ("first", _of(1)), ("cut", audit_entry.c.position > 4)):
            if what == name:
                connection.execute(audit_entry.delete().where(where))
        if what == "emptied":
            connection.execute(audit_entry.delete())
        if what == "changed":
            entry = connection.execute(sa.select(audit_entry.c.entry).where(_of(3))).scalar_one()
            changed = entry.replace("ada@", "bob@")
            assert changed != entry
            connection.execute(audit_entry.update().where(_of(3)).values(entry=changed))
    if what == "swapped":
        _swap(database)
    if what == "rewritten":
        _rewrite(database)
        assert audit_log.verify(database).fault == ""
    assert words in audit_log.verify(database, f"{before.position}:{before.hash}").fault


def test_a_cut_tail_is_still_missed_after_the_log_went_on(control: Control) -> None:
    written(control)
    with control.database.transaction() as connection:
        connection.execute(audit_entry.delete().where(audit_entry.c.position > 4))
    written(control, 1)
    assert "entry 5 is missing" in audit_log.verify(control.database).fault


def test_several_servers_write_one_chain(postgres_url: str, control: Control) -> None:
    first = make_control(control.home / "first", postgres_url)
    others = [Database(postgres_url) for _ in range(2)]
    logs = [AuditLog(database, data_access=False) for database in (first.database, *others)]
    caller = member(first)
    for log in logs:
        log.start()

    def act(log: AuditLog) -> None:
        for index in range(20):
            with request(log, f"r{index}"):
                iam.require(log.database, caller, "aiplatform.models.delete", "demo")
                with log.database.transaction():
                    pass

    threads = [Thread(target=act, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.stop()
    verdict = audit_log.verify(first.database)
    assert (verdict.fault, verdict.position, verdict.unsealed) == ("", 60, 0)
    for database in (first.database, *others):
        database.close()


def test_methods_have_google_s_names() -> None:
    names = {
        "aiplatform.tuningJobs.cancel": "google.cloud.aiplatform.v1beta1.GenAiTuningService.CancelTuningJob",
        "aiplatform.models.list": "google.cloud.aiplatform.v1beta1.ModelService.ListModels",
        "aiplatform.endpoints.predict": "google.cloud.aiplatform.v1beta1.PredictionService.GenerateContent",
        "storage.objects.get": "storage.objects.get",
        "storage.buckets.setIamPolicy": "storage.setIamPermissions",
        "iam.serviceAccounts.create": "google.iam.admin.v1.CreateServiceAccount",
        "iam.serviceAccountKeys.delete": "google.iam.admin.v1.DeleteServiceAccountKey",
        "iam.serviceAccounts.setIamPolicy": "google.iam.admin.v1.SetIAMPolicy",
        "resourcemanager.projects.setIamPolicy": "SetIamPolicy",
        "cloudkms.cryptoKeys.create": "google.cloud.kms.v1.KeyManagementService.CreateCryptoKey",
    }
    assert {permission: method_name(permission, "v1beta1") for permission in names} == names
