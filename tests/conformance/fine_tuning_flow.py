"""Fine-tuning through the client of OpenAI, as a program of its own: `fine_tuning_flow.py BASE_URL KEY`.

Run by every version of the client we hold. Prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from typing import Any

import openai

MODEL = "gemini-2.0-flash-001"
ENDED = {"succeeded", "failed", "cancelled"}
SECONDS = 120
WORDS = ["yes", "no", "maybe", "never"]


def rows(count: int = 16) -> bytes:
    lines = []
    for number in range(count):
        word = WORDS[number % len(WORDS)]
        turns = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "wrong", "weight": 0}]
        turns += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": word, "weight": 1}]
        lines.append(json.dumps({"messages": turns, "parallel_tool_calls": False}))
    return "\n".join(lines).encode()


def pairs(count: int = 8) -> bytes:
    lines = []
    for number in range(count):
        word = WORDS[number % len(WORDS)]
        prompt = {"messages": [{"role": "user", "content": f"q{number}"}]}
        better, worse = ([{"role": "assistant", "content": text}] for text in (word, f"I would say {word}."))
        lines.append(json.dumps({"input": prompt, "preferred_output": better, "non_preferred_output": worse}))
    return "\n".join(lines).encode()


def main(base_url: str, key: str) -> dict[str, Any]:
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        jobs = client.fine_tuning.jobs
        training = client.files.create(file=("train.jsonl", rows()), purpose="fine-tune")
        assert client.files.wait_for_processing(training.id).status == "processed"
        validation = client.files.create(file=io.BytesIO(rows(4)), purpose="fine-tune")
        made = jobs.create(
            model=MODEL,
            training_file=training.id,
            validation_file=validation.id,
            suffix="flow",
            seed=7,
            metadata={"team": "a b", "run": "1"},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
        )
        job = awaited(client, made.id)
        model = job.fine_tuned_model
        dpo_file = client.files.create(file=("pairs.jsonl", pairs()), purpose="fine-tune")
        hyperparameters: Any = {"beta": 0.2, "n_epochs": 1}
        dpo = awaited(
            client,
            jobs.create(
                model=model,
                training_file=dpo_file.id,
                method={"type": "dpo", "dpo": {"hyperparameters": hyperparameters}},
            ).id,
        )
        bad_file = client.files.create(file=("bad.jsonl", b'{"messages": 1}\nno\n'), purpose="fine-tune")
        bad = awaited(client, jobs.create(model=MODEL, training_file=bad_file.id, hyperparameters={"n_epochs": 1}).id)
        checkpoints = list(jobs.checkpoints.list(job.id, limit=1))
        asked: Any = [{"role": "user", "content": "q1"}]
        texts = {
            name: client.chat.completions.create(model=name, messages=asked, temperature=0, max_tokens=4).model
            for name in (model, dpo.fine_tuned_model, checkpoints[-1].fine_tuned_model_checkpoint)
        }
        results = client.files.content(job.result_files[0]).read()
        ended = caught(lambda: jobs.cancel(job.id))
        found = {
            "version": openai.__version__,
            "made": made.to_dict(),
            "job": job.to_dict(),
            "dpo": dpo.to_dict(),
            "bad": bad.to_dict(),
            "same": jobs.retrieve(job.id).to_dict(),
            "texts": texts,
            "checkpoints": [one.to_dict() for one in checkpoints],
            "events": [one.to_dict() for one in jobs.list_events(job.id, limit=3)],
            "jobs": [one.id for one in jobs.list(limit=1)],
            "results": results.decode(),
            "result_file": client.files.retrieve(job.result_files[0]).to_dict(),
            "files": [one.id for one in client.files.list(limit=2)],
            "oldest": client.files.list(order="asc", limit=1).data[0].id,
            "of_results": [one.id for one in client.files.list(purpose="fine-tune-results")],
            "content": client.files.content(training.id).read().decode(),
            "retrieved": client.models.retrieve(model).to_dict(),
            "models": [one.id for one in client.models.list()],
            "cancelled": cancelled(client, training.id),
            "by_metadata": [one.id for one in jobs.list(metadata={"team": "a b"})],
            "without_metadata": [one.id for one in jobs.list(extra_query={"metadata": "null"})],
            "upload": upload(client),
            "errors": [ended, *faults(client, training.id)],
            "later": asyncio.run(later(base_url, key)),
        }
        found["deleted"] = [
            client.files.delete(bad_file.id).to_dict(),
            client.models.delete(dpo.fine_tuned_model).to_dict(),
        ]
        found["errors"].append(caught(lambda: client.models.retrieve(dpo.fine_tuned_model)))
        found["errors"].append(caught(lambda: client.files.retrieve(bad_file.id)))
        return found


def awaited(client: openai.OpenAI, job_id: str) -> Any:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in ENDED:
            return job
        time.sleep(0.1)
    raise TimeoutError(job_id)


def cancelled(client: openai.OpenAI, file: str) -> list[str]:
    made = client.fine_tuning.jobs.create(model=MODEL, training_file=file, hyperparameters={"n_epochs": 50})
    client.fine_tuning.jobs.cancel(made.id)
    return [awaited(client, made.id).status, made.id]


def upload(client: openai.OpenAI) -> dict[str, Any]:
    data = rows()
    made = client.uploads.create(bytes=len(data), filename="p.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    second = client.uploads.parts.create(made.id, data=data[100:])
    first = client.uploads.parts.create(made.id, data=data[:100])
    done = client.uploads.complete(made.id, part_ids=[first.id, second.id])
    assert done.file is not None and client.files.content(done.file.id).read() == data
    other = client.uploads.create(bytes=5, filename="p.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    short = caught(lambda: client.uploads.complete(other.id, part_ids=[first.id]))
    return {"made": made.status, "done": done.status, "short": short, "ended": client.uploads.cancel(other.id).status}


def faults(client: openai.OpenAI, file: str) -> list[dict[str, Any]]:
    jobs, files = client.fine_tuning.jobs, client.files
    other = files.create(file=("note.txt", b"hello"), purpose="user_data").id
    rft: Any = {"type": "reinforcement", "reinforcement": {"grader": {}}}
    wrong: Any = {"n_epochs": 51}
    return [
        caught(lambda: jobs.create(model="gpt-nothing", training_file=file)),
        caught(lambda: jobs.create(model=MODEL, training_file="file-0000000000000000000")),
        caught(lambda: jobs.create(model=MODEL, training_file=other)),
        caught(lambda: jobs.create(model=MODEL, training_file=file, hyperparameters=wrong)),
        caught(lambda: jobs.create(model=MODEL, training_file=file, method=rft)),
        caught(lambda: jobs.create(model=MODEL, training_file=file, suffix="a:b")),
        caught(lambda: jobs.create(model="ft:gemini-2.0-flash-001:demo::00000000", training_file=file)),
        caught(lambda: jobs.retrieve("ftjob-0000000000000000000")),
        caught(lambda: files.create(file=("a.jsonl", b"{}"), purpose="batch")),
        caught(lambda: jobs.pause("ftjob-0000000000000000000")),
        caught(lambda: client.with_options(api_key="sk-sarto-nothing").models.list()),
    ]


def caught(call: Any) -> dict[str, Any]:
    try:
        call()
    except openai.APIStatusError as error:
        body: Any = error.body if isinstance(error.body, dict) else {}
        known = {name: body.get(name) for name in ("message", "type", "param", "code")}
        return {"kind": type(error).__name__, "status": error.status_code, "id": error.request_id, **known}
    return {"kind": "none"}


async def later(base_url: str, key: str) -> list[str]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key) as client:
        file = await client.files.create(file=("train.jsonl", rows(2)), purpose="fine-tune")
        page = [job.id async for job in client.fine_tuning.jobs.list(limit=2)]
        return [file.id, *page]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))
