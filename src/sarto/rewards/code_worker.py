"""The process that runs one snippet of a user: `python -P -m sarto.engine.programs.sandbox sarto.rewards.code_worker
MEMORY_BYTES`, started by `code_workers`.

Reads lines of JSON from standard input and writes one line for each: first the snippet, then a call after the other.
Before it reads the snippet it gives up all but computing. What the snippet does to this program afterwards, it does to
its own rewards: the parent takes nothing from it but a number or the words of a failure.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
import types
from typing import Any, BinaryIO

from sarto.errors import FailedPrecondition
from sarto.rewards.failures import CODE_FAILURE, LIMIT, NO_NUMBER
from sarto.system.process import die_with_parent
from sarto.system.sandbox import keep_computing

NAME = "reward_snippet"
MOST_WORDS = 500
Failure = dict[str, Any]


def main() -> None:
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    die_with_parent()
    try:
        keep_computing(int(sys.argv[1]))
    except (FailedPrecondition, OSError) as error:
        _write(replies, {"missing": str(error)})
        return
    _write(replies, {})
    sys.argv = [NAME]
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module  # dataclasses and typing look there
    _write(replies, _load(module, json.loads(requests.readline())["code"]))
    for line in requests:
        call = json.loads(line)
        _write(replies, {"number": call["number"], **_evaluate(module, call["example"], call["response"])})


def _write(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


def _load(module: types.ModuleType, code: str) -> Failure:
    """Run the snippet's own lines; empty if they define `evaluate`."""
    try:
        exec(compile(code, NAME, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        return _failure(error)
    if not callable(getattr(module, "evaluate", None)):
        return {"failure": CODE_FAILURE, "message": "The snippet defines no function evaluate(example, response)."}
    return {}


def _evaluate(module: types.ModuleType, example: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    try:
        reward = module.evaluate(example, response)
        if reward is None or isinstance(reward, (str, bytes, bytearray)):
            words = f"evaluate returned {'None' if reward is None else 'text'}, not a number."
            return {"failure": NO_NUMBER, "message": words}
        number = float(reward)
    except BaseException as error:
        return _failure(error)
    if math.isnan(number):
        return {"failure": NO_NUMBER, "message": "evaluate returned NaN."}
    return {"reward": repr(number)}


def _failure(error: BaseException) -> Failure:
    """The words of an error, and its line in the snippet."""
    if isinstance(error, MemoryError):
        return {"failure": LIMIT, "message": "The snippet took more memory than it may."}
    try:
        words = f"{type(error).__name__}: {error}"[:MOST_WORDS]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == NAME]
    except BaseException:  # the words of an error can be code of the user, too
        return {"failure": CODE_FAILURE, "message": f"An error without words: {type(error).__name__[:MOST_WORDS]}"}
    return {"failure": CODE_FAILURE, "message": f"{words} (line {lines[-1]})" if lines else words}


if __name__ == "__main__":
    main()
