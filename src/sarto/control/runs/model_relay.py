"""The relay: sends the generation requests that a program of the engine writes into its run folder.
`engine/programs/relayed_model.py` is the other end."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from sarto.contract.model_relay import RelayRequest, RelayResponse
from sarto.contract.run_folder import ANSWERED_FILE, ASKED_FILE
from sarto.control.executors.executor import RunTransport
from sarto.errors import FailedPrecondition, Internal, SartoError
from sarto.system.loop import Loop

logger = logging.getLogger(__name__)

Ask = Callable[[str, dict[str, Any], Callable[[float], object]], dict[str, Any]]
"""Name, GenerateContentRequest as JSON and a pause function, to GenerateContentResponse. Raises SartoError."""
Post = Callable[[str, bytes, float], Any]
"""URL of a reward, JSON and seconds, to the JSON of its answer. Raises SartoError."""
LOOK_SECONDS = 0.02
MOST_AT_ONCE = 64


@contextmanager
def answering(
    run: RunTransport, folder: str, names: Collection[str], ask: Ask, post: Post | None = None
) -> Iterator[None]:
    """Within the block, answer requests of the program to the models and URLs in `names`. `folder`: the file name of
    its run folder."""
    if not names:
        yield
        return
    relay = _ModelRelay(run, folder, frozenset(names), ask, post)
    relay.start()
    try:
        yield
    finally:
        relay.stop()


class _ModelRelay:
    def __init__(self, run: RunTransport, folder: str, names: frozenset[str], ask: Ask, post: Post | None) -> None:
        self._run, self._folder, self._names, self._call, self._post = run, folder, names, ask, post
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._loop = Loop("judge-relay", self._look, LOOK_SECONDS)
        self._stopping = self._loop.stopping

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        """Stop writing; calls in progress end by themselves."""
        with self._lock:
            self._stopping.set()
        self._loop.stop()

    def _look(self) -> None:
        lines = self._run.lines(f"{self._folder}/{ASKED_FILE}")
        for question in [RelayRequest.model_validate_json(line) for line in lines]:
            while not self._room.acquire(timeout=LOOK_SECONDS):
                if self._stopping.is_set():
                    return
            threading.Thread(target=self._answer, args=(question,), name="judge-call", daemon=True).start()

    def _answer(self, question: RelayRequest) -> None:
        try:
            answer = RelayResponse(number=question.number, response=self._ask(question))
        except SartoError as error:
            logger.warning(
                "relay request failed", extra={"model": question.judge or question.url, "status": error.status}
            )
            answer = RelayResponse(number=question.number, error=error.to_status())
        except Exception as error:  # after any error, since the run waits for a response
            logger.exception("query failed", extra={"model": question.judge or question.url})
            fault = Internal(f"The call of {question.judge or question.url} failed: {type(error).__name__}")
            answer = RelayResponse(number=question.number, error=fault.to_status())
        finally:
            self._room.release()
        with self._lock:
            if not self._stopping.is_set():
                line = answer.model_dump_json(exclude_defaults=True).encode()
                self._run.send(f"{self._folder}/{ANSWERED_FILE}", line)

    def _ask(self, question: RelayRequest) -> dict[str, Any]:
        name = question.url or question.judge
        if name not in self._names:
            raise FailedPrecondition(f"{name} was not named when the work was created.")
        if question.url and self._post is not None:
            return {"body": self._post(question.url, json.dumps(question.request).encode(), question.seconds)}
        return self._call(question.judge, question.request, self._stopping.wait)
