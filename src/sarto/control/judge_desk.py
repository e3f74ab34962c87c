"""Answers what a run asks of judges elsewhere, while it runs: reads its questions, has them asked, writes the answers.

One desk for each attempt that has such judges; `engine/outside.py` is the other end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from sarto.control.judge_endpoints import JudgeEndpoint, ask
from sarto.errors import FailedPrecondition, Internal, SartoError
from sarto.schema.runs import ANSWERED_FILE, ASKED_FILE, OutsideAnswer, OutsideQuestion
from sarto.storage.growing import GrowingFile

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.02
MOST_AT_ONCE = 64


@contextmanager
def answering(judges: Mapping[str, JudgeEndpoint], wanted: Sequence[str], run_folder: Path) -> Iterator[None]:
    """For as long as this lasts the run in that folder gets its answers; `wanted` are the judges it may ask."""
    if not wanted:
        yield
        return
    desk = _Desk({name: judges[name] for name in wanted if name in judges}, run_folder)
    desk.start()
    try:
        yield
    finally:
        desk.stop()


class _Desk:
    def __init__(self, judges: Mapping[str, JudgeEndpoint], run_folder: Path) -> None:
        self._judges = judges
        self._asked, self._answered = GrowingFile(run_folder / ASKED_FILE), run_folder / ANSWERED_FILE
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._room = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._thread = threading.Thread(target=self._serve, name="judge-desk", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Calls under way end by themselves; nothing is written any more."""
        with self._lock:
            self._stopping.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                questions = [OutsideQuestion.model_validate_json(line) for line in self._asked.lines()]
            except (OSError, ValidationError):
                logger.exception("a run's questions could not be read")
                return
            for question in questions:
                while not self._room.acquire(timeout=LOOK_SECONDS):
                    if self._stopping.is_set():
                        return
                threading.Thread(target=self._answer, args=(question,), name="judge-call", daemon=True).start()

    def _answer(self, question: OutsideQuestion) -> None:
        try:
            answer = OutsideAnswer(number=question.number, response=self._ask(question))
        except SartoError as error:
            logger.warning("judge did not answer", extra={"judge": question.judge, "status": error.status})
            answer = OutsideAnswer(number=question.number, error=error.to_status())
        except Exception as error:  # whatever it was, the run waits for an answer
            logger.exception("judge call failed", extra={"judge": question.judge})
            fault = Internal(f"the call of {question.judge} failed: {type(error).__name__}")
            answer = OutsideAnswer(number=question.number, error=fault.to_status())
        finally:
            self._room.release()
        with self._lock:
            if not self._stopping.is_set():
                with self._answered.open("ab") as file:
                    file.write(answer.model_dump_json(exclude_defaults=True).encode() + b"\n")

    def _ask(self, question: OutsideQuestion) -> dict[str, object]:
        judge = self._judges.get(question.judge)
        if judge is None:
            raise FailedPrecondition(f"The autorater {question.judge} is not configured on this server any more.")
        return ask(judge, question.request, self._stopping.wait)
