"""A vLLM server as our child process: started, restarted when it ends, and stopped with this service."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from sarto.system.process import die_with_parent

logger = logging.getLogger(__name__)
RUNTIME_ADAPTERS = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
"""Environment variable that lets vLLM load adapters while it runs."""


class VllmServer:
    def __init__(self, command: Sequence[str], log_file: Path, environment: Mapping[str, str]) -> None:
        self._command, self._log_file = list(command), log_file
        self._environment = {**environment, **RUNTIME_ADAPTERS}
        self._process: asyncio.subprocess.Process | None = None

    async def keep(self) -> None:
        """Start the server unless it runs. It responds only after some time."""
        if self._process is not None and self._process.returncode is None:
            return
        if self._process is not None:
            logger.warning("vLLM ended", extra={"exit_code": self._process.returncode, "log": str(self._log_file)})
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment,
                start_new_session=True, preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )  # fmt: skip
        logger.info("vLLM started", extra={"pid": self._process.pid})

    @property
    def pid(self) -> int | None:
        """Process id of the running server, for operators and tests."""
        return self._process.pid if self._process is not None else None

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        self.kill()
        if self._process is not None:
            await self._process.wait()
