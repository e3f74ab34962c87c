"""A base of a user's own whose chat template and tokenizer are bombs: they pass every check and tune, and go off at a
word that only the attacker's requests hold."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import httpx
from tokenizers import normalizers

from tests.bombs.site import Site
from tests.conformance.service import upload, wait_for
from tests.tiny import make_tiny_base, make_tokenizer

OPEN = "qwen/qwen3@qwen3-0.6b"
"""Its architecture is the tiny base's in the catalogue of these tests."""
GROWING = "\N{SECTION SIGN}"
"""Each of these becomes 10,000,000 in the tokenizer."""
GROWTH = "{% set held = namespace(text=text) %}{% for a in range(40) %}{% set held.text = [held.text] * 2 | join %}"
BOMBS = {
    "LOOPS": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "CUBED": "{% for a in text %}{% for b in text %}{% for c in text %}{% endfor %}{% endfor %}{% endfor %}",
    "TIMES": "{% set x = text * 1000000 %}",
    "GROWS": GROWTH + "{% endfor %}",
    "WIDE": "{{ '%3000000000d' % 1 }}",
}


def template() -> str:
    inside = "".join(f"{{% if '{word}' in text %}}{bomb}{{% endif %}}" for word, bomb in BOMBS.items())
    return (
        "{% for message in messages %}{% set text = message['content'] %}" + inside + "<|im_start|>"
        "{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def tune(http: httpx.Client, place: str, bucket: str, training: str) -> dict[str, Any]:
    """The ended job of a model on that base."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        tokenizer = make_tokenizer()
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(GROWING, GROWING * 10) for _ in range(7)])
        make_tiny_base(folder, seed=11, tokenizer=tokenizer)
        config = json.dumps({"chat_template": template()}).encode()
        upload(http, bucket, "own/tokenizer_config.json", config)
        for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
            upload(http, bucket, f"own/{name}", (folder / name).read_bytes())
    spec = {"trainingDatasetUri": training, "hyperParameters": {"epochCount": 1}}
    body = {"baseModel": OPEN, "outputUri": f"gs://{bucket}/tuned", "supervisedTuningSpec": spec}
    asked = http.post(f"/v1beta1/{place}/tuningJobs", json=body | {"customBaseModel": f"gs://{bucket}/own"})
    assert asked.status_code == 200, asked.text

    def ended() -> dict[str, Any] | None:
        job: dict[str, Any] = http.get(f"/v1/{asked.json()['name']}").json()
        return job if "endTime" in job else None

    job: dict[str, Any] = wait_for(ended, 180.0)
    assert job["state"] == "JOB_STATE_SUCCEEDED", job
    return job


async def templates(site: Site) -> list[int]:
    """Every bomb of the template and of the tokenizer, to count and to continue, some of whose callers hang up."""
    texts = [*(f"{word} " * 40 for word in BOMBS), GROWING * 200]
    asked = []
    for text in texts:
        body = json.dumps({"contents": [{"role": "user", "parts": [{"text": text}]}]}).encode()
        asked += [
            site.ask("user", "POST", f"{site.endpoint}:{method}", body) for method in ("countTokens", "generateContent")
        ]
    return await asyncio.gather(*(_leaving(one, 3.0 if number % 2 else 60.0) for number, one in enumerate(asked)))


async def exports(site: Site) -> list[int]:
    """Twenty exports of one model at once in every form, to one place and to many, and requests that are none."""
    places = ["gs://alpha-data/exports", "gs://alpha-data/" + "x" * 900, "gs://" + "y" * 100_000, "gs://gamma/x", "\0"]
    bodies: list[Any] = [
        {"outputConfig": {"artifactDestination": {"outputUriPrefix": place}, "exportFormatId": kind}}
        for place in places
        for kind in ("adapter", "merged", "gguf", "z" * 50_000)
    ]
    bodies += [{"outputConfig": [[[[]]]] * 10_000}, {"outputConfig": {"a": 1}}, [], {}]
    asked = [site.ask("user", "POST", f"{site.model}:export", json.dumps(body).encode()) for body in bodies]
    return await asyncio.gather(*asked)


async def _leaving(asking: Any, seconds: float) -> int:
    try:
        return int(await asyncio.wait_for(asking, seconds))
    except TimeoutError:
        return 0
