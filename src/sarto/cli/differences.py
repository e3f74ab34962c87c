"""What is different here from the hosted service and its documentation, on purpose: a section of `docs/support.md`."""

from __future__ import annotations

DIFFERENCES: tuple[tuple[str, str, str], ...] = (
    (
        "each model is tuned in some regions",
        "every region tunes every model; `global` only open models, unless `tuning_in_global` is set",
        "one machine; samples that post to `global` are refused there too",
    ),
    (
        "validation of open models is at most 25 % of the training file in bytes",
        "any share; at most 5,000 rows, and 30 % of the training rows above 1,000",
        "the rule refuses plain 80/20 splits",
    ),
    (
        "at least 16, or 100, examples",
        "one is enough",
        "a small set is tuned, and the data report says what it thinks of it",
    ),
    (
        "open models are deployed by hand",
        "they answer at endpoints too, beside their weights in `outputUri`",
        "",
    ),
    (
        "a tuned model is called by its endpoint only",
        "by its model name, version and checkpoint endpoints too",
        "the mistake most often made",
    ),
    (
        "API keys answer 404 at tuned endpoints",
        "401 everywhere: there are no API keys",
        "",
    ),
    (
        "a tuned endpoint lies in another region than its job (3.x)",
        "in the job's; a name from elsewhere says which region has it",
        "",
    ),
    (
        "`tuningJobs` have no delete",
        "`DELETE` for ended jobs",
        "users ask for it, and the permission exists",
    ),
    (
        "explicit context caches",
        "refused by name; prompts that begin alike are remembered without asking",
        "",
    ),
    (
        "`predict`, `rawPredict` on tuned Gemini: 400",
        "400 `FAILED_PRECONDITION` that names the method to use",
        "",
    ),
    (
        "`rebaseTunedModel` may deploy to the same endpoint",
        "refused by name: a new model gets endpoints of its own",
        "an endpoint never changes what answers under it",
    ),
    (
        "images, PDF, audio and video in data and prompts",
        "refused with the row and part",
        "the bases are text models",
    ),
    (
        "501 for what is not built",
        "400 with status `UNIMPLEMENTED`",
        "clients ask again on 5xx",
    ),
    (
        "`readMask`, `fields`, `view` cut answers",
        "answers are whole",
        "",
    ),
    (
        "`orderBy`",
        "`create_time desc` only; others are refused",
        "pages stay stable under inserts",
    ),
    (
        "reinforcement, distillation, preference, video and full tuning",
        "refused by name",
        "not built",
    ),
)
