"""Intended differences from the hosted service and its documentation: a section of `docs/support.md`."""

from __future__ import annotations

DIFFERENCES: tuple[tuple[str, str, str], ...] = (
    (
        "signed URLs, `matchGlob`, ACLs",
        "signed URLs: 401; `matchGlob`: 400; `predefinedAcl` may be `private` or `projectPrivate`, as for every object",
        "list with `prefix` and `delimiter`; only policies grant rights",
    ),
    (
        "rows with `prompt` and `completion` as lists of messages",
        "each such row is refused by name",
        "the service reads few formats; `sarto data convert` makes them from others",
    ),
    (
        "OpenAI form: `extra_body.google`, more than 8 choices, `allowed_tools` with mode `auto`",
        "400 by name; a `seed` of 64 bits is folded to 32",
        "",
    ),
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
        "a small dataset is tuned, and the data report has a finding",
    ),
    (
        "open models are deployed by hand",
        "they have endpoints too, besides their weights in `outputUri`",
        "",
    ),
    (
        "a tuned model is called by its endpoint only",
        "by its model name, version and checkpoint endpoints too",
        "the most frequent mistake of users",
    ),
    (
        "API keys answer 404 at tuned endpoints",
        "keys of `sarto auth api-key` are bearers everywhere; those in `?key=` or `x-goog-api-key` are 401",
        "",
    ),
    (
        "OpenAI's fine-tuning: reinforcement, pause, resume, graders, checkpoint permissions, `expires_after`",
        "400 by name, like purposes of files for other services; the rest is in [openai.md](openai.md)",
        "",
    ),
    (
        "OpenAI's fine-tuning: at least 10 rows; a file's status is `uploaded` for a while",
        "one row is enough; a file is `processed` at once, and its rows are checked by the job",
        "",
    ),
    (
        "a tuned endpoint is in another region than its job (3.x)",
        "in the job's; the error for another region names the right one",
        "",
    ),
    (
        "`tuningJobs` have no delete",
        "`DELETE` for ended jobs",
        "users need it, and the permission exists",
    ),
    (
        "explicit context caches",
        "refused by name; prompts with the same prefix are cached automatically",
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
        "the model of an endpoint does not change",
    ),
    (
        "images, PDF, audio and video in data and prompts",
        "refused with the row and part",
        "the bases are text models",
    ),
    (
        "a turn of the model at the end of a request is continued (LangChain's prefill)",
        "refused by name",
        "its tokens would differ from those in training",
    ),
    (
        "text after a function call in one turn",
        "refused by name, in rows and in requests; an empty text is not",
        "chat templates write text before calls, so its place would change",
    ),
    (
        'batch rows with `{"request": "text"}`',
        "the row's `status` is an error: an object is needed",
        "Google's format has an object; a bare text has no role and no settings",
    ),
    (
        "a key that occurs twice in an object: the last one counts",
        "400; in a dataset a fault of the row",
        "else one of the two would be lost silently",
    ),
    (
        "OpenAI: consecutive messages of one role are separate",
        "one turn, an empty line between their texts",
        "templates require users and models in turn",
    ),
    (
        "a job reads and writes buckets with its agent's rights only",
        "its maker needs them too, unless `data_rights` is `agent`",
        "else the right to tune would be the right to read every bucket of the project",
    ),
    (
        "callers who may get a job see rows and errors that quote them",
        "only those who may read its data, checked at each request",
        "as above",
    ),
    (
        "tuning on a tuned model takes no right to export it",
        "`aiplatform.models.export` on its project, else 400",
        "a model tuned with a tiny learning rate is a copy",
    ),
    (
        "a caller with the URL of an upload session may continue it",
        "only its creator, signed in",
        "a session writes with its creator's rights",
    ),
    (
        "any free bucket name can be taken",
        "`sarto-…-models` is 403: the service creates it",
        "else another project's jobs could be made to fail",
    ),
    (
        "501 for what is not implemented",
        "400 with status `UNIMPLEMENTED`",
        "clients retry on 5xx",
    ),
    (
        "`readMask`, `fields`, `view` select fields of a response",
        "responses are complete",
        "",
    ),
    (
        "`orderBy`",
        "`create_time desc` only; others are refused",
        "pages stay stable under inserts",
    ),
    (
        "answers at temperature 0 may differ from call to call",
        (
            "the same to the last bit, for any concurrent requests, where weights are served in bfloat16 or int8 on"
            " AVX512-BF16 without matrix tiles (AMX) and the size of a head is a multiple of 32; in float32, with AMX,"
            " on Arm, on a GPU and through vLLM near ties may change with the load"
        ),
        "only our own kernels guarantee an order of sums",
    ),
    (
        "video tuning",
        "refused by name",
        "not implemented",
    ),
)
