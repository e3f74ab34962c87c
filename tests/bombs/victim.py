"""A tenant that works: a sign of life, a cheap read, a small write, a count of tokens and an answer of a model, one
after another until its input is closed. Prints how long each took, in seconds."""

from __future__ import annotations

import http.client
import json
import select
import sys
import time


def main(port: int, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    place = "/v1/projects/victim/locations/us-central1/endpoints"
    model = "/v1/projects/victim/locations/us-central1/publishers/google/models/gemini-2.0-flash-001"
    contents = [{"role": "user", "parts": [{"text": "a"}]}]
    asked = (
        ("healthz", "GET", "/healthz", None),
        ("read", "GET", f"{place}?pageSize=5", None),
        ("write", "POST", place, json.dumps({"displayName": "mine"})),
        ("count", "POST", f"{model}:countTokens", json.dumps({"contents": contents})),
        (
            "answer",
            "POST",
            f"{model}:generateContent",
            json.dumps({"contents": contents, "generationConfig": {"maxOutputTokens": 2}}),
        ),
    )
    took: dict[str, list[float]] = {name: [] for name, *_ in asked}
    faults = []
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        for name, method, path, body in asked:
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
            connection.close()
            took[name].append(time.monotonic() - began)
            if answer.status != 200:
                faults.append(f"{name} {answer.status} {text[:200]!r}")
    print(json.dumps({"took": took, "faults": faults}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
