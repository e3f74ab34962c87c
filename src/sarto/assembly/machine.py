"""Resources of this machine for the service: memory, cores, GPUs, sandbox, threads."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import platformdirs

from sarto.api.http.handler_threads import OutsideThreads
from sarto.configuration import Limits
from sarto.control.executors.executor import clean_environment
from sarto.control.scheduling.capacity import RUNS_SHARE
from sarto.errors import FailedPrecondition
from sarto.rewards.code_workers import CodeLimits
from sarto.serving.rewards import CodeService
from sarto.settings import Settings
from sarto.system import failpoints
from sarto.system.memory import machine_memory_bytes
from sarto.system.processor import Processor

logger = logging.getLogger(__name__)

HANDLER_THREADS = 16
OUTSIDE_THREADS, OUTSIDE_OF_A_PROJECT = 64, 8
MOST_WAITS = 2000
"""Most concurrent waits and event streams of all callers."""


def reward_code(stack: AsyncExitStack, limits: Limits) -> CodeService:
    service = CodeService(CodeLimits(limits.reward_code_seconds, limits.reward_code_bytes))
    stack.push_async_callback(asyncio.to_thread, service.close)
    return service


FOLDERS = ("credentials", "runs", "adapters", "models", "cache", "logs")


def outside_threads(stack: AsyncExitStack) -> OutsideThreads:
    threads = OutsideThreads(OUTSIDE_THREADS, OUTSIDE_OF_A_PROJECT)
    stack.callback(threads.close)
    return threads


def make_folders(home: Path) -> None:
    """Create the home's folders with access for the owner only; a folder of another user is not changed."""
    for folder in (home, *(home / name for name in FOLDERS)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid():
            folder.chmod(0o700)


def missing_confinement() -> list[str]:
    """The parts of the sandbox that this machine lacks, with reasons. Starts a sandboxed process once."""
    program, environment = [sys.executable, "-P", "-m", "sarto.engine.programs.sandbox"], clean_environment(os.environ)
    tried = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    return (tried.stderr.strip().splitlines() or ["unknown reason"]) if tried.returncode else []


def this_processor() -> Processor:
    """The processor, with the results of all homes of this user. A fault that a test injects affects the trial, not the
    run."""
    fault = os.environ.get(failpoints.VARIABLE, "")
    planted = {failpoints.VARIABLE: fault} if fault.startswith(failpoints.FAULT) else {}
    memory = platformdirs.user_cache_path("sarto", appauthor=False) / "processor.json"
    return Processor(clean_environment(os.environ) | planted, memory)


def check_confinement(is_required: bool) -> None:
    """Raises FailedPrecondition if runs cannot be sandboxed but must be."""
    reasons = missing_confinement()
    if reasons and is_required:
        listed = "; ".join(reasons)
        raise FailedPrecondition(f'run_confinement is "always", and this machine cannot confine runs: {listed}.')
    if reasons:
        logger.warning("runs are not fully confined", extra={"reasons": reasons})
    else:
        logger.info("runs are confined")


def check_start(settings: Settings) -> None:
    """Raises FailedPrecondition for settings that exclude each other, and for root without the setting that allows
    it."""
    if settings.data_folder and not settings.database_url:
        raise FailedPrecondition("data_folder is for servers that share a PostgreSQL database; set database_url too.")
    if os.geteuid() == 0 and not settings.allow_root:
        raise FailedPrecondition(
            "The service does not run as root: an attacker in one of its processes would have root rights. Start it as"
            " a user of its own, or set allow_root = true (SARTO_ALLOW_ROOT=true), for instance in a container."
        )


def most_data_bytes(limits: Limits) -> int:
    """Limit of a run's own memory; none with GPUs, whose driver maps far more than it uses."""
    return 0 if limits.gpus else max(limits.run_memory_bytes, int(RUNS_SHARE * machine_memory_bytes()))


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_gpus(environ: Mapping[str, str]) -> int:
    """Number of GPUs for runs. If there may be several, torch counts them in a process of its own, because its import
    takes seconds."""
    named = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip() not in ("", "-1")]
    count = len(named) if "CUDA_VISIBLE_DEVICES" in environ else len(list(Path("/dev").glob("nvidia[0-9]*")))
    if count < 2:
        return count
    program = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(program, env=dict(environ), capture_output=True, text=True, check=True).stdout)


def limits_of(settings: Settings) -> Limits:
    """Limits from the settings. Raises FailedPrecondition if no run could ever start."""
    limits = settings.limits
    threads, run_threads = limits.threads or cores(), limits.run_threads or max(limits.threads, cores())
    if threads > run_threads:
        raise FailedPrecondition(f"threads = {threads} for one run is more than run_threads = {run_threads} for all.")
    return replace(
        limits,
        threads=threads,
        run_threads=run_threads,
        run_memory_bytes=limits.run_memory_bytes or int(RUNS_SHARE * machine_memory_bytes()),
        run_gpus=count_gpus(os.environ) if limits.run_gpus is None else limits.run_gpus,
    )
