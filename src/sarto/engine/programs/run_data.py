"""The datasets of a run, tokenised. Those of a distillation are prompts: its teacher answers them first, and the run
trains on the labelled rows, which have the form of supervised tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from sarto.contract.common import DatasetRef
from sarto.contract.run_folder import ANSWERS_FOLDER, LABELLED_FOLDER
from sarto.contract.tuning_run import DataStats, RunSpec
from sarto.conversations.examples import WITH_REPLY, Example, RowFault, parse_examples, parse_line
from sarto.conversations.generation_request import request_of
from sarto.engine.dataset.prepare import DatasetLimits, PreparedDataset, check_examples, check_usable, prepare
from sarto.engine.evaluation.generate import Generate
from sarto.engine.models.decoder import Decoder
from sarto.engine.programs.relayed_model import RelayedModels
from sarto.engine.programs.teacher_answers import MOST_TOKENS, Question, TeacherAnswer, answers, teacher
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.errors import InvalidArgument
from sarto.system.files import whole_file

LEAST_ROOM = 16
"""A prompt that leaves fewer tokens for its answer is too long."""
CERTIFIED_ROWS = 4
Say = Callable[[str], None]
Fault = list[Any]
"""Line, path, found, expected, remedy."""


@dataclass(frozen=True)
class RunData:
    """The data that a run trains on. `spec` names it."""

    spec: RunSpec
    training: PreparedDataset
    validation: PreparedDataset | None
    outside: RelayedModels
    """Models elsewhere, for all that the run asks of them."""
    prompts: PreparedDataset | None = None
    """Of a distillation."""

    def certified_lines(self) -> list[int]:
        """A few rows from the shorter half: they test the serving path, not the quality of the model."""
        store = (self.validation or self.training).store
        short = np.flatnonzero(store.lengths <= np.median(store.lengths))[:CERTIFIED_ROWS]
        return list(dict.fromkeys(store.line(int(index)) for index in short))

    def held_out(self) -> list[Example]:
        """The certified rows."""
        held_out = self.validation or self.training
        lines = self.certified_lines()
        return [parse_line(held_out.raw(line), line, data_format=self.spec.data_format) for line in lines]

    def statistics(self, steps: int, of_rows: Callable[..., DataStats]) -> DataStats:
        """Those of the rows; in a distillation those of the prompts, without the teacher's answers."""
        if self.prompts is None:
            return of_rows(self.training.store, steps)
        dropped = self.training.store.facts.faults
        lines = {int(line) for line in self.training.origins}
        found = self.prompts.stats(steps)
        return found.model_copy(
            update={
                "example_count": len(lines),
                "dropped_count": len(dropped),
                "dropped_indices": [fault[0] for fault in dropped],
                "dropped_reasons": [RowFault(*fault[1:]).reason for fault in dropped],
            }
        )


def read_data(spec: RunSpec, tokenizer: ChatTokenizer, decoder: Decoder | None, say: Say) -> RunData:
    """Tokenise the datasets; those of a distillation when the teacher has answered. `decoder`: the base, if it is in
    memory. Rows beyond the limits are not refused here, since the report comes first. Raises InvalidArgument and
    FailedPrecondition."""
    outside = RelayedModels(Path(spec.run_folder))
    training = _prepare(spec, spec.training_dataset, tokenizer, spec.max_training_examples, "training")
    validation, most = None, spec.max_validation_examples
    if spec.validation_dataset is not None:
        validation = _prepare(spec, spec.validation_dataset, tokenizer, most, "validation")
    if spec.teaching is None or spec.data_format != "prompts":
        return RunData(spec, training, validation, outside)
    try:
        check_usable(training, validation)
    except InvalidArgument:  # it is refused after its report, and the teacher need not answer
        return RunData(spec, training, validation, outside)
    if left_out := training.store.facts.counts["prompts"]["with_reply"]:
        say(f"{left_out:,} training rows have a reply, which is left out: the teacher answers instead.")
    spec = spec.model_copy(update={"data_format": "auto"})
    with teacher(spec, decoder, outside) as generate:
        labelled = _label(spec, training, tokenizer, generate, say, "training")
        held_out = _label(spec, validation, tokenizer, generate, say, "validation") if validation else None
    datasets = {"training_dataset": labelled.dataset, "validation_dataset": held_out.dataset if held_out else None}
    return RunData(spec.model_copy(update=datasets), labelled, held_out, outside, training)


def _prepare(
    spec: RunSpec, dataset: DatasetRef, tokenizer: ChatTokenizer, max_examples: int, role: str
) -> PreparedDataset:
    """Prepare the data with any share of unusable rows. The file's size was checked when it was pinned."""
    limits = DatasetLimits(max_bytes=dataset.size_bytes, max_examples=max_examples, max_dropped_share=1.0, role=role)
    room = LEAST_ROOM if spec.data_format == "prompts" else 0
    return prepare(
        dataset, tokenizer, max_tokens=spec.max_tokens_per_example - room, cache_folder=spec.cache_folder,
        data_format=spec.data_format, limits=limits, processes=spec.threads,
    )  # fmt: skip


def _label(
    spec: RunSpec, prompts: PreparedDataset, tokenizer: ChatTokenizer, generate: Generate, say: Say, role: str
) -> PreparedDataset:
    """The labelled rows, with the faults of the prompts and of their answers. Validation rows keep their replies."""
    assert spec.teaching is not None
    keeps, resume = role == "validation", Path(spec.resume_folder or spec.run_folder)
    total = sum(1 for _ in _unanswered(spec, prompts, keeps))
    unanswered = _unanswered(spec, prompts, keeps)
    known = answers(resume / ANSWERS_FOLDER / f"{role}.jsonl", unanswered, total, spec.teaching, generate, say)
    path, faults, skipped = resume / LABELLED_FOLDER / f"{role}.jsonl", list(prompts.store.facts.faults), set[int]()
    path.parent.mkdir(parents=True, exist_ok=True)
    most = spec.max_validation_examples if keeps else spec.max_training_examples
    while True:
        found: list[Fault] = []
        origins: list[int] = []
        with whole_file(path) as file:
            for line, row in _rows(spec, prompts, known, tokenizer, keeps, found):
                origins.append(line)
                if len(origins) not in skipped:
                    file.write(row)
        used = [line for number, line in enumerate(origins, 1) if number not in skipped]
        check_examples([*faults, *found], len(used), prompts.name, DatasetLimits(max_dropped_share=1.0))
        dataset = DatasetRef(uri=prompts.dataset.uri, path=str(path), size_bytes=path.stat().st_size)
        labelled = _prepare(spec, dataset, tokenizer, most, role)
        if not labelled.store.facts.faults:
            break
        for number, *words in labelled.store.facts.faults:  # too long with its answer
            faults.append([origins[number - 1], *words])
            skipped.add(number)
    labelled.store.facts.faults = sorted([*faults, *found], key=lambda fault: int(fault[0]))
    return labelled.with_origins(used)


def _questions(spec: RunSpec, prompts: PreparedDataset) -> Iterator[tuple[Question, bytes]]:
    """The usable rows in order."""
    columns = prompts.store.columns
    usable = zip(columns["lines"].tolist(), columns["tokens_of"].tolist(), strict=True)
    wanted = next(usable, None)
    with Path(prompts.dataset.path).open("rb") as file:
        for line, raw in enumerate(file, 1):
            if wanted is None:
                return
            if line == wanted[0]:
                room = min(MOST_TOKENS, spec.max_tokens_per_example - wanted[1])
                yield Question(line, parse_examples(raw, line, data_format="prompts")[0], room), raw
                wanted = next(usable, None)


def _unanswered(spec: RunSpec, prompts: PreparedDataset, keeps: bool) -> Iterator[Question]:
    return (question for question, _ in _questions(spec, prompts) if not (keeps and _has_reply(question)))


def _has_reply(question: Question) -> bool:
    return question.prompt.format.endswith(WITH_REPLY)


def _rows(
    spec: RunSpec,
    prompts: PreparedDataset,
    known: dict[tuple[int, int], TeacherAnswer],
    tokenizer: ChatTokenizer,
    keeps: bool,
    faults: list[Fault],
) -> Iterator[tuple[int, bytes]]:
    """Line and labelled row of each usable answer; the others are added to the faults."""
    assert spec.teaching is not None
    with_thought = tokenizer.template.takes_thought
    for question, raw in _questions(spec, prompts):
        line, prompt = question.line, question.prompt
        if keeps and _has_reply(question):
            yield line, _row(parse_line(raw, line))
            continue
        for number in range(spec.teaching.candidates):
            try:
                reply = known[line, number].turn(with_thought=with_thought)
            except RowFault as fault:
                faults.append([line, fault.path, fault.seen, fault.expected, fault.fix])
            else:
                yield line, _row(Example((*prompt.turns, reply), prompt.tools))


def _row(example: Example) -> bytes:
    return orjson.dumps(request_of(example).to_json()) + b"\n"
