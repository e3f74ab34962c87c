"""What authorisation costs a request: a bearer known from before, and the question whether it may. In this process, on
a SQLite home; prints microseconds of processor time, and what the same work costs when nothing is remembered.

    python benchmarks/authorization.py
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from processor import show_processor
from sarto.control.access import account_store, authorization, projects
from sarto.control.access.authentication import Authenticator
from sarto.control.access.decisions import CURRENT, AuditedCall
from sarto.storage.database import migrations
from sarto.storage.database.database import Database

LIMIT_MICROSECONDS = 200.0
ROUNDS, CALLS = 7, 3000
BINDINGS = 200


def microseconds(act: Callable[[], object], calls: int) -> float:
    """The median over rounds of processor time for each call."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(calls):
            act()
        found.append((time.process_time() - began) / calls * 1e6)
    return statistics.median(found)


def main() -> None:
    show_processor()
    with tempfile.TemporaryDirectory() as folder:
        database = Database.in_home(Path(folder))
        migrations.upgrade(database)
        file = json.loads(account_store.open_home(database, Path(folder), "demo", "http://127.0.0.1:1").read_bytes())
        key = account_store.find_key(database, file["private_key_id"])
        project = projects.find(database, "demo")
        assert key is not None and project is not None
        server = Authenticator(database, "http://127.0.0.1:1", 3600)
        token = server.issue(key)["access_token"]
        caller = server.authenticate(token)
        with database.transaction() as connection:
            for index in range(BINDINGS):
                on = f"projects/{project.number}/buckets/bucket-{index}"
                authorization.bind(connection, on, "roles/storage.objectViewer", caller.member)

        def request() -> None:
            mine = CURRENT.set(AuditedCall("r", "127.0.0.1"))
            who = server.remembered(token) or server.authenticate(token)
            authorization.require(database, who, "aiplatform.tuningJobs.get", "demo")
            CURRENT.reset(mine)

        def cold() -> None:
            database.rights_changes += 1
            request()

        request()
        warm, anew = microseconds(request, CALLS), microseconds(cold, CALLS // 10)
        print(f"a request with a token of the last second, {BINDINGS} bindings: {warm:.1f} us")
        print(f"token verified and bindings read anew: {anew:.1f} us (once a second for each caller)")
        print(f"limit {LIMIT_MICROSECONDS:.0f} us; a request takes {warm / LIMIT_MICROSECONDS:.3f} of it")
        assert warm < LIMIT_MICROSECONDS
        database.close()


if __name__ == "__main__":
    main()
