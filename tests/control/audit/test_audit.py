"""The audit log: an entry with each act, a chain that shows every kind of tampering, on both databases."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest
import sqlalchemy as sa

from sarto.control.access import authorization, projects
from sarto.control.access.decisions import CURRENT, AuditedCall, method_name
from sarto.control.access.principal import Principal
from sarto.control.audit import audit_log, chain
from sarto.control.audit.audit_log import AuditLog
from sarto.control.context import Control
from sarto.control.executors.executor import clean_environment
from sarto.control.executors.local import LocalExecutor
from sarto.control.jobs import tuning_jobs
from sarto.control.models import model_bucket
from sarto.control.runs.supervisor import Supervisor
from sarto.errors import PermissionDenied
from sarto.names import LocationName
from sarto.storage.database.database import Database
from sarto.storage.database.tables import audit_entry, meta
from tests.control.homes import STAND_IN, create, make_control, member, state, wait_until


@contextmanager
def request(log: AuditLog, name: str = "r1", code: int = 0, field: str = "") -> Iterator[AuditedCall]:
    call = AuditedCall(name, "192.0.2.7", who=Principal("ada@demo.example", "", "user"))
    mine = CURRENT.set(call)
    try:
        yield call
    finally:
        CURRENT.reset(mine)
        log.finish(call, code, field)


def written(control: Control, acts: int = 5) -> AuditLog:
    """A stopped log that holds so many creates, and a refusal."""
    found = projects.find(control.database, "demo")
    assert found is not None
    model_bucket.model_bucket(control, found.number)  # else the first create makes it, which is an entry too
    log = AuditLog(control.database, data_access=False)
    log.start()
    for index in range(acts):
        with request(log, f"r{index}"):
            create(control)
    with request(log), pytest.raises(PermissionDenied):
        tuning_jobs.list_jobs(
            control, authorization.Principal("eve@example.com", "", "user"), LocationName("demo", "us-central1")
        )
    log.stop()
    return log


def test_an_act_and_a_refusal_have_an_entry_each_and_a_read_has_none(any_control: Control) -> None:
    log = written(any_control, 2)
    with request(log):
        tuning_jobs.list_jobs(any_control, member(any_control), LocationName("demo", "us-central1"))
    rows = [json.loads(line) for line in chain.export(any_control.database)]
    assert [row["protoPayload"]["methodName"].rpartition(".")[2] for row in rows] == [
        "CreateTuningJob", "CreateTuningJob", "ListTuningJobs",
    ]  # fmt: skip
    act, refusal = rows[0]["protoPayload"], rows[2]["protoPayload"]
    assert act["methodName"] == "google.cloud.aiplatform.v1.GenAiTuningService.CreateTuningJob"
    assert act["authenticationInfo"]["principalEmail"] == "ada@demo.example" and act["status"] == {}
    assert act["requestMetadata"] == {"callerIp": "192.0.2.7"} and rows[0]["labels"] == {"request": "r0"}
    assert refusal["status"]["code"] == 7 and not refusal["authorizationInfo"][0]["granted"]
    verdict = chain.verify(any_control.database)
    assert (verdict.fault, verdict.position, verdict.unsealed) == ("", 3, 0)


def test_an_act_that_fails_leaves_no_entry_that_says_it_happened(any_control: Control) -> None:
    log = AuditLog(any_control.database, data_access=False)
    log.start()
    with request(log) as call, pytest.raises(ZeroDivisionError):
        authorization.require(any_control.database, member(any_control), "aiplatform.models.delete", "demo")
        with any_control.database.transaction():
            raise ZeroDivisionError
    assert not call.decisions
    log.stop()
    assert len(list(chain.export(any_control.database))) == 1
    assert chain.verify(any_control.database).fault == ""


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
    before = chain.verify(database)
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
        assert chain.verify(database).fault == ""
    assert words in chain.verify(database, f"{before.position}:{before.hash}").fault


def test_a_cut_tail_is_still_missed_after_the_log_went_on(control: Control) -> None:
    written(control)
    with control.database.transaction() as connection:
        connection.execute(audit_entry.delete().where(audit_entry.c.position > 4))
    written(control, 1)
    assert "entry 5 is missing" in chain.verify(control.database).fault


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
                authorization.require(log.database, caller, "aiplatform.models.delete", "demo")
                with log.database.transaction():
                    pass

    threads = [Thread(target=act, args=(log,), daemon=True) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.stop()
    verdict = chain.verify(first.database)
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


def test_what_a_run_reads_writes_and_makes_is_the_agent_s_for_whoever_asked(control: Control) -> None:
    log = AuditLog(control.database, data_access=False)
    log.start()
    supervisor = Supervisor(control, LocalExecutor(clean_environment(os.environ), [sys.executable, str(STAND_IN)]))
    name = create(control)
    supervisor.start()
    try:
        wait_until(lambda: state(control, name) == "SUCCEEDED")
    finally:
        supervisor.stop()
        log.stop()
    rows = [json.loads(line) for line in chain.export(control.database)]
    work = [row["protoPayload"] for row in rows if row["labels"]["request"] == str(name)]
    agent = projects.find(control.database, "demo")
    assert agent is not None
    for one in work:
        assert one["authenticationInfo"]["principalEmail"] == agent.agent
        asked = one["authenticationInfo"]["serviceAccountDelegationInfo"]
        assert asked == [{"principalSubject": "user:ada@demo.example"}]
    done = {(one["methodName"].rpartition(".")[2], one["resourceName"].split("/")[4]) for one in work}
    assert ("get", "objects") in done and ("create", "objects") in done
    assert ("UploadModel", "models") in done and ("CreateEndpoint", "endpoints") in done
    assert "projects/_/buckets/data/objects/train.jsonl" in {one["resourceName"] for one in work}


def test_old_entries_are_exported_before_they_go_and_the_chain_still_holds(any_control: Control) -> None:
    database, home = any_control.database, any_control.home
    written(any_control)
    before = chain.verify(database)
    exported = list(chain.export(database))
    with database.transaction() as connection:  # three of them are of an earlier day
        last = audit_log.FIRST
        for row in connection.execute(sa.select(audit_entry).order_by(audit_entry.c.position)).all():
            entry = json.loads(row.entry)
            if row.position <= 3:
                entry["timestamp"] = "2020-01-01T00:00:00Z"
            text = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
            last = audit_log.chained(last, row.position, text)
            connection.execute(audit_entry.update().where(_of(row.position)).values(entry=text, hash=last))
        connection.execute(meta.update().where(meta.c.key == audit_log.ANCHOR).values(value=f"{row.position}:{last}"))
    whole = chain.verify(database)
    assert (whole.fault, whole.position) == ("", before.position)
    assert chain.remove_old(database, home, 0) == 0
    assert chain.remove_old(database, home, 30) == 3
    assert chain.remove_old(database, home, 30) == 0
    left = chain.verify(database, f"{whole.position}:{whole.hash}")
    assert (left.fault, left.start, left.position) == ("", 3, 6)
    [file] = (home / chain.FOLDER).iterdir()
    assert file.name == "audit-1-3.jsonl" and file.stat().st_mode & 0o077 == 0
    assert len(file.read_text().splitlines()) == 3 and len(exported) == 6
    audit_log.seal(database)
    again = chain.verify(database, "", home / chain.FOLDER)
    assert (again.fault, again.start, again.position) == ("", 0, 7)
    rows = [json.loads(line)["protoPayload"] for line in chain.export(database)]
    assert rows[-1]["methodName"] == "google.logging.DeleteLogEntries" or "audit-1-3" in rows[-1]["resourceName"]
    first = f"1:{json.loads(file.read_text().splitlines()[0])['chain']['hash']}"
    assert "put the exported files back" in chain.verify(database, first).fault
    assert chain.verify(database, first, home / chain.FOLDER).fault == ""
    with database.transaction() as connection:
        connection.execute(audit_entry.delete().where(_of(4)))
    assert "entry 4 is missing" in chain.verify(database).fault
    file.write_text(file.read_text().replace("ada@", "bob@"))
    assert "entry 1 was changed" in chain.verify(database, "", home / chain.FOLDER).fault
