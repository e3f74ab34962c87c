"""A run program that keeps the RunSpec contract and learns nothing: what the control tests start as a child process.

Its behaviour is asked for in the dataset's name: `…/slow.jsonl` takes long, `…/die-once.jsonl` is killed in its first
attempt, `…/die.jsonl` in each, `…/raise.jsonl` raises an error in each once it has two checkpoints,
`…/fault.jsonl` reports a fault of the user, `…/deaf.jsonl` ignores SIGTERM,
`…/hangs.jsonl` never gets through its data.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def watch_parent() -> None:
    os.read(0, 1)
    os._exit(99)


def at(name: str) -> Path:
    """The path of a file name, by the places in the arguments."""
    place, _, rest = name.partition("/")
    return Path(dict(argument.split("=", 1) for argument in sys.argv[2:])[place], rest)


def main() -> int:
    threading.Thread(target=watch_parent, daemon=True).start()
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder = at(spec["run_folder"])
    name = spec["training_dataset"]["uri"].rpartition("/")[2]
    signal.signal(signal.SIGTERM, signal.SIG_IGN if name == "deaf.jsonl" else lambda *_: os._exit(143))
    progress = (folder / "progress.jsonl").open("a", buffering=1)

    def say(kind: str, **fields: object) -> None:
        progress.write(json.dumps({"kind": kind, "time": time.time(), **fields}) + "\n")

    say("phase", phase="PROCESSING_DATASET")
    if name == "hangs.jsonl":
        time.sleep(600)
    rows = len(at(spec["training_dataset"]["path"]).read_bytes().splitlines())
    if name == "fault.jsonl":
        return finish(folder, {"error": {"code": 3, "message": "fault.jsonl line 7: no reply"}})
    numbers = {"sum": rows, "min": 1, "max": 1, "mean": 1, "median": 1, "p5": 1, "p95": 1, "buckets": [[rows, 1, 1]]}
    data = {
        "example_count": rows, "dropped_count": 1, "dropped_indices": [3], "dropped_reasons": ["too long"],
        "character_count": 10 * rows, "token_count": 4 * rows, "input_tokens": numbers, "output_tokens": numbers,
        "messages": numbers, "sample_contents": [], "step_count": 6,
    }  # fmt: skip
    epochs = spec["parameters"]["epoch_count"] or 3
    chosen = {
        "rank": spec["parameters"]["rank"], "alpha": 16, "epoch_count": epochs, "batch_size": 8, "warmup_steps": 1,
        "learning_rate": spec["parameters"]["learning_rate"], "total_steps": 2 * epochs, "precision": "float32",
        "device": "cpu", "threads": 1, "reasons": {"epoch_count": "few examples"},
    }  # fmt: skip
    say("data", data=data)
    say("parameters", parameters=chosen)
    say("phase", phase="TUNING")
    checkpoints = []
    resume = at(spec["resume_folder"]) / "step"
    first = int(resume.read_text()) + 1 if resume.exists() else 1
    for step in range(1, 2 * epochs + 1):
        epoch = (step + 1) // 2
        if step >= first:
            time.sleep({"slow.jsonl": 1.0, "deaf.jsonl": 1.0}.get(name, 0.02))
            measured = {"step": step, "epoch": epoch, "loss": 2.0 / step, "accuracy": 0.5, "supervised_tokens": 9}
            say(
                "step",
                step={
                    **measured, "tokens": 20, "learning_rate": 1e-3, "gradient_norm": 1.0, "tokens_per_second": 100.0,
                    "seconds_left": 1.0,
                },
            )  # fmt: skip
        if step % 2 == 0:
            record = checkpoint(folder, spec, epoch, step)
            checkpoints.append(record)
            if step >= first:
                say("evaluation", evaluation=record["evaluation"])
                say("checkpoint", checkpoint=record)
        if step >= first:
            part = resume.with_name("step.part")  # whole or not at all, as the real program writes it
            part.write_text(str(step))
            part.rename(resume)
            if name == "raise.jsonl" and step >= 4:
                raise RuntimeError("the evaluation broke at: the user's own words")
            if name == "die.jsonl" or (name == "die-once.jsonl" and spec["epoch"] == 1 and step == 3):
                os.kill(os.getpid(), signal.SIGKILL)
    return finish(
        folder,
        {
            "checkpoints": checkpoints, "data": data, "parameters": chosen, "best_checkpoint_id": "1",
            "best_reason": "lowest validation loss",
        },
    )  # fmt: skip


def checkpoint(folder: Path, spec: dict[str, object], epoch: int, step: int) -> dict[str, object]:
    made = folder / "checkpoints" / str(step)
    made.mkdir(parents=True)
    files = {
        "adapter_model.safetensors": f"weights of {spec['job']} at {step}".encode(),
        "adapter_config.json": json.dumps({"parent": spec["parent_adapter"]}).encode(),
    }
    for name, content in files.items():
        (made / name).write_bytes(content)
    return {
        "checkpoint_id": str(epoch), "epoch": epoch, "step": step, "folder": f"checkpoints/{step}",
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "evaluation": {"step": step, "epoch": epoch, "loss": 1.0 + step, "accuracy": 0.4, "supervised_tokens": 5},
    }  # fmt: skip


def finish(folder: Path, result: dict[str, object]) -> int:
    part = folder / "result.part"
    part.write_text(json.dumps(result))
    part.rename(folder / "result.json")
    return 0


sys.exit(main())
