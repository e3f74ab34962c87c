"""The two instruction data sets of the training benchmarks; the same bytes for a given seed.

`short`: classification, extraction and rewriting with short answers, about 60 to 360 tokens an example. `longtail`:
the same and summaries, with a long tail of up to about 1,000 tokens. The answer is about a seventh of the tokens, and
examples of a task share a system prompt. A line is {"task", "prompt": [messages], "completion": [message]}.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

SHORT_ROWS, LONG_ROWS, SEED = 400, 200, 7
SYSTEM = {
    "classify": "You sort customer messages for a shop. Answer with exactly one label out of: "
    "delivery, refund, defect, account, praise, other. Do not explain.",
    "extract": "You read customer messages and return one line of JSON with the keys order, item, "
    "city and urgent. Use null where the message does not say it. No other text.",
    "restyle": "You rewrite an agent's notes as a short, warm reply to the customer. Two sentences "
    "at most, British spelling, no exclamation marks, sign as Team Alder.",
    "brief": "You sum up a support conversation for the next shift: what happened, what was promised, "
    "what is open. Plain sentences, no list.",
}
ITEMS = "kettle,desk lamp,rain jacket,bike pump,coffee grinder,yoga mat,router,headphones,tent,air fryer".split(",")
CITIES = "Leeds,Bristol,Gdansk,Porto,Lyon,Turku,Graz,Ghent,Malmo,Cork".split(",")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
GREETINGS = ["Hello,", "Hi team,", "Good morning,", "To whom it may concern,", "Hey,", "Dear support,"]
MATTERS = {
    "delivery": [
        "my {item} from order {order} has not arrived in {city} yet",
        "the parcel {order} with the {item} went to the wrong street in {city}",
    ],
    "refund": [
        "I sent the {item} of order {order} back and still wait for the money",
        "please pay back the {item}, order {order}, it was cancelled last week",
    ],
    "defect": [
        "the {item} from order {order} stopped working after two days",
        "one part of the {item} in order {order} was cracked when I opened it",
    ],
    "account": [
        "I cannot log in since I moved to {city}, the reset mail never comes",
        "please change the address of my account to {city}",
    ],
    "praise": [
        "the {item} is lovely and the courier in {city} was kind",
        "just a note to say that order {order} was perfect",
    ],
    "other": ["do you plan to open a shop in {city}", "is there a user guide for the {item} in another language"],
}
ASIDES = [
    "I have bought from you for {count} years and this is the first time I had to write.",
    "The tracking page shows the same line since {day}.",
    "I was at home the whole of {day}, nobody rang.",
    "My neighbour had a similar story with a {other} last month.",
    "I tried the steps from your help page twice.",
    "Your chat told me to wait for {count} working days, which are over now.",
    "I need it before {day}, as it is a present.",
    "The box looked fine from outside, though the tape had been cut.",
    "Please answer by mail, I work nights and cannot take calls.",
    "I can send a photo of the label if that helps you.",
    "The price went down by {count} euros the day after I paid.",
    "I read the terms and could not find a word about this case.",
    "My partner says I should have asked for the {other} instead.",
]


def _aside(draw: random.Random) -> str:
    return draw.choice(ASIDES).format(count=draw.randint(2, 19), day=draw.choice(DAYS), other=draw.choice(ITEMS))


def _example(draw: random.Random, task: str, asides: int) -> dict[str, Any]:
    label = draw.choice(list(MATTERS))
    item, order = draw.choice(ITEMS), f"{draw.choice('ABCDEFG')}{draw.randint(10000, 99999)}"
    city = draw.choice(CITIES)
    matter = draw.choice(MATTERS[label]).format(item=item, order=order, city=city)
    lines = [_aside(draw) for _ in range(asides)]
    lines.insert(draw.randint(0, len(lines)), matter[0].upper() + matter[1:] + ".")
    text = draw.choice(GREETINGS) + " " + " ".join(lines)
    if task == "classify":
        reply = label
    elif task == "extract":
        found = {"order": order if order in text else None, "item": item if item in matter else None}
        reply = json.dumps(found | {"city": city if city in text else None, "urgent": "before" in text})
    elif task == "restyle":
        reply = (
            f"Thank you for writing about the {item}; we are sorry for the trouble and have passed your "
            f"{label} question to a colleague who will answer by {draw.choice(DAYS)}. Team Alder"
        )
        text = f"notes: customer says {matter}; wants news; polite. " + text
    else:
        parts = [f"The customer wrote that {matter}."]
        parts += ["They added: " + _aside(draw) for _ in range(max(1, asides // 4))]
        parts.append(f"We promised an answer by {draw.choice(DAYS)}; the {label} question is open.")
        reply = " ".join(parts)
    prompt = [{"role": "system", "content": SYSTEM[task]}, {"role": "user", "content": text}]
    return {"task": task, "prompt": prompt, "completion": [{"role": "assistant", "content": reply}]}


def write(folder: Path) -> dict[str, Path]:
    """`short.jsonl` and `longtail.jsonl`; returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(SEED)
    tasks = ("classify", "extract", "restyle", "brief")
    short = [_example(draw, tasks[i % 3], min(16, int(math.exp(draw.gauss(1.1, 0.8))))) for i in range(SHORT_ROWS)]
    long = [_example(draw, tasks[i % 4], min(54, int(math.exp(draw.gauss(2.0, 1.15))))) for i in range(LONG_ROWS)]
    paths = {}
    for name, rows in (("short", short), ("longtail", long)):
        draw.shuffle(rows)
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths
