"""Every order in which two supervisors, a user and time can act on one job, through the real functions of control.

From each state that is reached every act is tried. A state is the job's row and what each supervisor believes it holds,
epochs counted from the newest; so the states are few and the search ends. After every act the rules hold, and from
every state an end can be reached: no job is stuck.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sarto.configuration import Limits
from sarto.control.context import Control
from sarto.control.jobs import states, tuning_jobs
from sarto.control.jobs.states import CANCELLED, FAILED, RUNNING, SUCCEEDED, Fenced, advance
from sarto.control.runs.supervisor import Supervisor
from sarto.control.scheduling import leases
from sarto.control.scheduling.leases import Lease
from sarto.schema.tuning_jobs import JobState
from sarto.storage.database.tables import tuning_job
from tests.control.homes import create, make_control, member, stand_in_executor

LIMITS = Limits(threads=1, concurrent_jobs=2, concurrent_runs=2, lease_seconds=600.0, reserve_bytes=0)
MOST_LOSSES = 2
State = tuple[object, ...]
Saved = tuple[dict[str, object], dict[str, Lease | None]]


@dataclass
class Play:
    """One job, two supervisors. `believes` is the lease each thinks it has."""

    control: Control
    believes: dict[str, Lease | None]

    def __post_init__(self) -> None:
        self.name = create(self.control)
        self.user = member(self.control)
        self.supervisor = Supervisor(self.control, stand_in_executor())

    def row(self):  # type: ignore[no-untyped-def]
        with self.control.database.reading() as connection:
            return connection.execute(tuning_job.select()).one()

    def saved(self) -> Saved:
        return self.row()._asdict(), dict(self.believes)

    def restore(self, saved: Saved) -> None:
        with self.control.database.transaction() as connection:
            connection.execute(tuning_job.update().values(**saved[0]))
        self.believes = dict(saved[1])

    def state(self) -> State:
        row = self.row()
        with self.control.database.reading() as connection:
            is_live = row.lease_until is not None and row.lease_until >= self.control.database.now(connection)
        held = tuple(
            None if lease is None else min(row.lease_epoch - lease.epoch, 2) for lease in self.believes.values()
        )
        return row.state.removeprefix("JOB_STATE_"), row.lease_owner, is_live, row.attempt, held

    def acts(self) -> dict[str, Callable[[], None]]:
        found: dict[str, Callable[[], None]] = {
            "user cancels": lambda: tuning_jobs.cancel(self.control, self.user, self.name),
            "lease expires": self.expire,
            "abandoned cancel ends": self.supervisor._end_abandoned_cancels,
        }
        for who in ("a", "b"):
            found[f"{who} claims"] = lambda who=who: self.claim(who)  # type: ignore[misc]
            if (lease := self.believes[who]) is None:
                continue
            found[f"{who} crashes"] = lambda who=who: self.believes.update({who: None})  # type: ignore[misc]
            found[f"{who} beats"] = lambda lease=lease: leases.beat(self.control.database, [lease], LIMITS)  # type: ignore[misc]
            found[f"{who} loses its run"] = lambda who=who, lease=lease: self.release(who, lease)  # type: ignore[misc]
            for to in (RUNNING, SUCCEEDED, FAILED, CANCELLED):
                word = str(to).removeprefix("JOB_STATE_")
                found[f"{who} writes {word}"] = lambda lease=lease, to=to: self.write(lease, to)  # type: ignore[misc]
        return found

    def claim(self, who: str) -> None:
        self.believes[who] = leases.claim(self.control.database, who, LIMITS) or self.believes[who]

    def release(self, who: str, lease: Lease) -> None:
        if lease.losses < MOST_LOSSES:
            leases.release(self.control.database, lease, is_lost=True)
            self.believes[who] = None
        else:
            self.write(lease, FAILED)

    def write(self, lease: Lease, to: JobState) -> None:
        with self.control.database.transaction() as connection:
            advance(connection, leases.hold(connection, lease), to, self.control.database.now(connection))

    def expire(self) -> None:
        with self.control.database.transaction() as connection:
            held = tuning_job.c.lease_until.is_not(None)
            connection.execute(tuning_job.update().where(held).values(lease_until=1.0))

    def do(self, act: str) -> None:
        """One act, and the rules it must keep."""
        before = self.row()
        who = self.believes.get(act[0]) if act[1:2] == " " else None
        is_stale = who is not None and (who.epoch != before.lease_epoch or who.owner != before.lease_owner)
        is_fenced = False
        try:
            self.acts()[act]()
        except Fenced:
            is_fenced = True
        after = self.row()
        moved = (JobState(before.state), JobState(after.state))
        assert moved[0] == moved[1] or moved[1] in states.MOVES[moved[0]], (act, moved)
        assert not JobState(before.state).is_final or after == before, f"{act} changed an ended job"
        assert after.lease_epoch - before.lease_epoch == (1 if act.endswith("claims") and after != before else 0), act
        if is_fenced or (is_stale and not act.endswith(("claims", "crashes"))):
            assert after == before, f"{act} by a zombie changed the job"
        if act.endswith("claims") and after != before:
            assert not (before.lease_owner and before.lease_until > 600.0), "a live lease was taken"


def test_every_order_of_acts_keeps_the_rules_and_leads_to_an_end(tmp_path: Path) -> None:
    play = Play(make_control(tmp_path, limits=LIMITS), {"a": None, "b": None})
    begin = play.state()
    known: dict[State, Saved] = {begin: play.saved()}
    leads: dict[State, set[State]] = {}
    waiting, tried = deque([begin]), 0
    while waiting:
        state = waiting.popleft()
        play.restore(known[state])
        for act in play.acts():
            play.restore(known[state])
            play.do(act)
            tried += 1
            found = play.state()
            leads.setdefault(state, set()).add(found)
            if found not in known:
                known[found] = play.saved()
                waiting.append(found)
    print(f"\n{len(known)} states, {tried} acts")
    ended = {state for state in known if state[0] in ("SUCCEEDED", "FAILED", "CANCELLED")}
    good = set(ended)
    while more := {state for state, after in leads.items() if state not in good and after & good}:
        good |= more
    assert good == set(known), "from some states no end can be reached"
    assert {state[0] for state in ended} == {"SUCCEEDED", "FAILED", "CANCELLED"} and len(known) > 100
    play.control.database.close()
