"""Parses requests into the engine's form; unsupported options are refused by their field.

Pure: tokens and numbers are returned, nothing is executed. Thread-safe.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sarto.conversations.examples import Example, RowFault
from sarto.conversations.generation_request import conversation_of
from sarto.engine.rendering.render import render_prompt
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.serving.grammars import answer_grammar, call_grammar
from sarto.errors import FieldViolation, InvalidArgument, Unimplemented
from sarto.schema.generation import (
    CountTokensRequest,
    CountTokensResponse,
    FunctionCallingConfig,
    FunctionCallingMode,
    GenerateContentRequest,
    GenerationConfig,
    Modality,
    ModalityTokenCount,
    ToolConfig,
    refuse_hosted,
)

MAX_CANDIDATES = 8
MAX_LOGPROBS = 20
MAX_STOPS = 16
CONFIG = "generation_config"
TEXT_TYPES = ("", "text/plain")
JSON_TYPES = ("application/json", "text/x.enum")
REFUSED = (
    "speech_config", "image_config", "routing_config", "model_selection", "audio_timestamp", "media_resolution",
    "enable_affective_dialog", "enable_enhanced_civic_answers", "translation_config", "audio_transcription_config",
    "response_format",
)  # fmt: skip
"""Fields of GenerationConfig that a text model does not support. `thinking_config` is not among them: it is a
preference."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled; temperature 0 takes the most probable. `logprobs`: alternatives to report, None: no
    report."""

    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    seed: int | None = None

    @property
    def is_plain_greedy(self) -> bool:
        return self.temperature == 0 and not self.presence_penalty and not self.frequency_penalty


@dataclass(frozen=True)
class PreparedPrompt:
    """The prompt of a request and the form of the response, for a server that generates."""

    prompt: list[int]
    functions: frozenset[str]
    """Functions that the response may call; if empty, the response is always text."""
    grammar: tuple[str, str] | None
    """(source, its field)."""


@dataclass(frozen=True)
class PreparedRequest:
    """A parsed request: prompt, sampling and length. It is sent as JSON from the preparing process to the worker."""

    prompt: list[int]
    sampling: Sampling
    candidates: int
    max_tokens: int
    """Most tokens per candidate, within the context; the end-of-turn token does not count."""
    stops: tuple[str, ...]
    functions: frozenset[str]
    grammar: tuple[str, str] | None
    """(source, its field)."""
    end_ids: frozenset[int]
    """Tokens that end a reply."""

    def to_json(self) -> dict[str, Any]:
        sets = {"functions": sorted(self.functions), "end_ids": sorted(self.end_ids)}
        return self.__dict__ | sets | {"sampling": asdict(self.sampling)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PreparedRequest:
        fields = dict(value)
        fields["sampling"] = Sampling(**value["sampling"])
        fields["grammar"] = tuple(value["grammar"]) if value["grammar"] else None
        fields |= {"functions": frozenset(value["functions"]), "end_ids": frozenset(value["end_ids"])}
        return cls(**fields | {"stops": tuple(value["stops"])})


def read_request(request: GenerateContentRequest, tokenizer: ChatTokenizer, context: int) -> PreparedRequest:
    """Parse a request. `context`: most tokens of prompt and response together. Raises InvalidArgument with every fault
    at once."""
    check_length(request, tokenizer, context)
    form = read_form(request, tokenizer)
    config = request.generation_config or GenerationConfig()
    room = context - len(form.prompt)
    if room < 1:
        raise InvalidArgument.field(
            "contents", f"The prompt has {len(form.prompt)} tokens; this model's context is {context}, answer included."
        )
    return PreparedRequest(
        prompt=form.prompt,
        sampling=_sampling(config),
        candidates=config.candidate_count or 1,
        max_tokens=min(config.max_output_tokens or room, room),
        stops=tuple(config.stop_sequences),
        functions=form.functions,
        grammar=form.grammar,
        end_ids=tokenizer.end_of_turn_ids,
    )


def check_length(request: GenerateContentRequest, tokenizer: ChatTokenizer, context: int) -> None:
    """Refuses a prompt by its number of characters, before it is tokenised, if it cannot fit. Raises
    InvalidArgument."""
    system = [request.system_instruction] if request.system_instruction else []
    characters = sum(len(part.text or "") for content in (*system, *request.contents) for part in content.parts)
    least = tokenizer.fewest_tokens(characters)
    if least >= context:
        words = f"The prompt has {characters} characters, which are more than {least} tokens"
        raise InvalidArgument.field("contents", f"{words}; this model's context is {context}, answer included.")


def read_form(request: GenerateContentRequest, tokenizer: ChatTokenizer) -> PreparedPrompt:
    """Parse everything but the prompt. Raises InvalidArgument with every fault at once, Unimplemented for hosted
    features."""
    if request.cached_content:
        raise Unimplemented("cachedContent is not supported: prompts with the same prefix are cached automatically.")
    if request.model_armor_config:
        raise Unimplemented("modelArmorConfig is not supported: no filter would screen prompt or answer.")
    if request.tool_config is not None and request.tool_config.retrieval_config:
        raise InvalidArgument.field("tool_config.retrieval_config", "Retrieval is hosted by Google; leave it out.")
    config = request.generation_config or GenerationConfig()
    faults = [FieldViolation(f"{CONFIG}.{field}", text) for field, text in _faults(config)]
    if faults:
        raise InvalidArgument.of(faults)
    conversation, prompt = prompt_tokens(request, tokenizer)
    functions, call = _functions(request.tool_config, conversation.tools)
    return PreparedPrompt(prompt, functions, call or answer_grammar(config))


def prompt_tokens(
    request: GenerateContentRequest | CountTokensRequest, tokenizer: ChatTokenizer
) -> tuple[Example, list[int]]:
    """The conversation to continue, and its tokens. Raises InvalidArgument for parts that a text model does not
    support."""
    refuse_hosted(request.tools)
    conversation = conversation_of(request.contents, request.system_instruction, request.tools)
    try:
        return conversation, render_prompt(conversation, tokenizer)
    except RowFault as fault:
        raise InvalidArgument(fault.reason) from None


def count_tokens(tokenizer: ChatTokenizer, request: CountTokensRequest) -> CountTokensResponse:
    """Number of tokens of the prompt as serving renders it."""
    if request.instances:
        raise InvalidArgument.field("instances", "Give the prompt as contents.")
    tokens = len(prompt_tokens(request, tokenizer)[1])
    characters = sum(len("".join((part.text or "").split())) for content in request.contents for part in content.parts)
    return CountTokensResponse(
        total_tokens=tokens,
        total_billable_characters=characters,
        prompt_tokens_details=[ModalityTokenCount(modality="TEXT", token_count=tokens)],
    )


def _functions(
    config: ToolConfig | None, tools: tuple[dict[str, Any], ...]
) -> tuple[frozenset[str], tuple[str, str] | None]:
    """Names of functions that the response may call, and the grammar of a call if one is required."""
    calling = (config.function_calling_config if config else None) or FunctionCallingConfig()
    names = frozenset(tool["name"] for tool in tools)
    field = "tool_config.function_calling_config"
    if calling.stream_function_call_arguments:
        raise InvalidArgument.field(
            f"{field}.stream_function_call_arguments", "Calls are returned only when they are complete."
        )
    unknown = sorted(set(calling.allowed_function_names) - names)
    if unknown:
        raise InvalidArgument.field(f"{field}.allowed_function_names", f"Not declared: {', '.join(unknown)}.")
    if calling.mode is FunctionCallingMode.NONE:
        return frozenset(), None
    allowed = frozenset(calling.allowed_function_names) or names
    if calling.mode is not FunctionCallingMode.ANY:
        return allowed, None
    if not tools:
        raise InvalidArgument.field(f"{field}.mode", "ANY requires a call, but no function is declared.")
    return allowed, call_grammar(tuple(tool for tool in tools if tool["name"] in allowed))


def _sampling(config: GenerationConfig) -> Sampling:
    default = Sampling()
    return Sampling(
        temperature=default.temperature if config.temperature is None else config.temperature,
        top_p=default.top_p if config.top_p is None else config.top_p,
        top_k=default.top_k if config.top_k is None else int(config.top_k),
        presence_penalty=config.presence_penalty or 0.0,
        frequency_penalty=config.frequency_penalty or 0.0,
        logprobs=(config.logprobs or 0) if config.response_logprobs else None,
        seed=config.seed,
    )


def _faults(config: GenerationConfig) -> list[tuple[str, str]]:
    """(field, fault) for numbers out of range and for unsupported options."""
    ranges: list[tuple[str, float | None, float, float]] = [
        ("temperature", config.temperature, 0, 2),
        ("top_p", config.top_p, 0, 1),
        ("top_k", config.top_k, 1, 1_000_000),
        ("candidate_count", config.candidate_count, 1, MAX_CANDIDATES),
        ("max_output_tokens", config.max_output_tokens, 1, 2**31),
        ("presence_penalty", config.presence_penalty, -2, 2),
        ("frequency_penalty", config.frequency_penalty, -2, 2),
        ("logprobs", config.logprobs, 0, MAX_LOGPROBS),
        ("stop_sequences", len(config.stop_sequences), 0, MAX_STOPS),
    ]
    faults = [
        (name, f"{value:g} is not between {least:g} and {most:g}.")
        for name, value, least, most in ranges
        if value is not None and not least <= value <= most
    ]
    if config.logprobs is not None and not config.response_logprobs:
        faults.append(("logprobs", "Set response_logprobs to true to get them."))
    if "" in config.stop_sequences:
        faults.append(("stop_sequences", "A stop sequence is empty."))
    if config.top_k is not None and not config.top_k.is_integer():
        faults.append(("top_k", f"{config.top_k:g} is not a whole number."))
    if config.response_mime_type not in (*TEXT_TYPES, *JSON_TYPES):
        known = ", ".join((*TEXT_TYPES[1:], *JSON_TYPES))
        faults.append(("response_mime_type", f"{config.response_mime_type} is not one of {known}."))
    if set(config.response_modalities) - {Modality.TEXT, Modality.MODALITY_UNSPECIFIED}:
        faults.append(("response_modalities", "This model answers in TEXT only."))
    set_fields = config.model_dump(include=set(REFUSED), exclude_none=True)
    return faults + [(name, "Has no meaning for a text model; leave it out.") for name in set_fields]
