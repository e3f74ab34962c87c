"""A vLLM server that is ours: started, started again when it ends, and gone when we are."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1
RUNTIME_ADAPTERS = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
"""Without it vLLM takes no adapters while it runs."""


class VllmServer:
    def __init__(self, command: Sequence[str], log_file: Path, environment: Mapping[str, str]) -> None:
        self._command, self._log_file = list(command), log_file
        self._environment = {**environment, **RUNTIME_ADAPTERS}
        self._process: asyncio.subprocess.Process | None = None

    async def keep(self) -> None:
        """Start it unless it runs. It takes a while until it answers."""
        if self._process is not None and self._process.returncode is None:
            return
        if self._process is not None:
            logger.warning("vLLM ended", extra={"exit_code": self._process.returncode, "log": str(self._log_file)})
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment,
                start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        logger.info("vLLM started", extra={"pid": self._process.pid})

    @property
    def pid(self) -> int | None:
        """Of the process that runs, for operators and tests."""
        return self._process.pid if self._process is not None else None

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        self.kill()
        if self._process is not None:
            await self._process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
