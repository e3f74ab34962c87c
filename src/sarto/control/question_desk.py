"""Answers what a program of the engine asks of models, while it runs: reads its questions, has them asked, writes the
answers. `engine/outside.py` is the other end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sarto.errors import FailedPrecondition, Internal, SartoError
from sarto.schema.runs import ANSWERED_FILE, ASKED_FILE, OutsideAnswer, OutsideQuestion
from sarto.storage.growing import GrowingFile

logger = logging.getLogger(__name__)

Ask = Callable[[str, dict[str, Any], Callable[[float], object]], dict[str, Any]]
"""Name, GenerateContentRequest as JSON and how to pause, to GenerateContentResponse. Raises SartoError."""
LOOK_SECONDS = 0.02
MOST_AT_ONCE = 64


@contextmanager
def answering(folder: Path, names: Collection[str], ask: Ask) -> Iterator[None]:
    """For as long as this lasts the program in that folder gets its answers from whoever stands under `names`."""
    if not names:
        yield
        return
    desk = _Desk(folder, frozenset(names), ask)
    desk.start()
    try:
        yield
    finally:
        desk.stop()


class _Desk:
    def __init__(self, folder: Path, names: frozenset[str], ask: Ask) -> None:
        self._names, self._call = names, ask
        self._asked, self._answered = GrowingFile(folder / ASKED_FILE), folder / ANSWERED_FILE
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
                logger.exception("questions could not be read")
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
            logger.warning("question was not answered", extra={"model": question.judge, "status": error.status})
            answer = OutsideAnswer(number=question.number, error=error.to_status())
        except Exception as error:  # whatever it was, the run waits for an answer
            logger.exception("question failed", extra={"model": question.judge})
            fault = Internal(f"the call of {question.judge} failed: {type(error).__name__}")
            answer = OutsideAnswer(number=question.number, error=fault.to_status())
        finally:
            self._room.release()
        with self._lock:
            if not self._stopping.is_set():
                with self._answered.open("ab") as file:
                    file.write(answer.model_dump_json(exclude_defaults=True).encode() + b"\n")

    def _ask(self, question: OutsideQuestion) -> dict[str, Any]:
        if question.judge not in self._names:
            raise FailedPrecondition(f"{question.judge} was not named when this was asked for.")
        return self._call(question.judge, question.request, self._stopping.wait)
