"""What a request asks for, in the engine's words; everything that cannot be honoured is refused here, by its field.

Pure: tokens and numbers come out, nothing is run. Any thread may call it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sarto.engine.data.render import conversation_from_contents, render_prompt
from sarto.engine.data.tokenizer import ChatTokenizer
from sarto.engine.serving.constraints import Grammar, GrammarTokens, answer_grammar, call_grammar
from sarto.engine.serving.sampling import Sampling
from sarto.errors import FieldViolation, InvalidArgument, Unimplemented
from sarto.schema.examples import Example, RowFault
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
"""Fields of GenerationConfig that a text model cannot honour. `thinking_config` is not among them: it is a wish."""


@dataclass(frozen=True)
class Form:
    """What a request asks for whatever continues it: the prompt, and what the answer must look like."""

    prompt: list[int]
    functions: frozenset[str]
    """Functions the answer may call; empty means that it is text whatever it says."""
    grammar: tuple[str, str] | None
    """(source, field it comes from)."""


@dataclass(frozen=True)
class Wanted:
    """One request, read: what to continue, how, and for how long."""

    prompt: list[int]
    sampling: Sampling
    candidates: int
    max_tokens: int
    """Tokens at most per candidate, already within the context; the end-of-turn token not counted."""
    stops: tuple[str, ...]
    functions: frozenset[str]
    grammar: Grammar | None


def read_request(
    request: GenerateContentRequest, tokenizer: ChatTokenizer, context: int, grammars: GrammarTokens
) -> Wanted:
    """`context`: tokens that prompt and answer may have together. Raises InvalidArgument with every fault at once."""
    form = read_form(request, tokenizer)
    config = request.generation_config or GenerationConfig()
    room = context - len(form.prompt)
    if room < 1:
        raise InvalidArgument.field(
            "contents", f"The prompt has {len(form.prompt)} tokens; this model's context is {context}, answer included."
        )
    return Wanted(
        prompt=form.prompt,
        sampling=_sampling(config),
        candidates=config.candidate_count or 1,
        max_tokens=min(config.max_output_tokens or room, room),
        stops=tuple(config.stop_sequences),
        functions=form.functions,
        grammar=Grammar(grammars, *form.grammar) if form.grammar else None,
    )


def read_form(request: GenerateContentRequest, tokenizer: ChatTokenizer) -> Form:
    """Raises InvalidArgument with every fault at once, Unimplemented for what is hosted elsewhere."""
    if request.cached_content:
        raise Unimplemented("cachedContent is not supported: prompts that begin alike are remembered by themselves.")
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
    return Form(prompt, functions, call or answer_grammar(config))


def prompt_tokens(
    request: GenerateContentRequest | CountTokensRequest, tokenizer: ChatTokenizer
) -> tuple[Example, list[int]]:
    """The conversation to continue, and its tokens. Raises InvalidArgument for what a text model cannot take."""
    refuse_hosted(request.tools)
    conversation = conversation_from_contents(request.contents, request.system_instruction, request.tools)
    try:
        return conversation, render_prompt(conversation, tokenizer)
    except RowFault as fault:
        raise InvalidArgument(fault.reason) from None


def count_tokens(tokenizer: ChatTokenizer, request: CountTokensRequest) -> CountTokensResponse:
    """Tokens of the prompt as it would be served."""
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
    """Names the answer may call, and the grammar of a call where one is demanded."""
    calling = (config.function_calling_config if config else None) or FunctionCallingConfig()
    names = frozenset(tool["name"] for tool in tools)
    field = "tool_config.function_calling_config"
    if calling.stream_function_call_arguments:
        raise InvalidArgument.field(f"{field}.stream_function_call_arguments", "Calls are given whole only.")
    unknown = sorted(set(calling.allowed_function_names) - names)
    if unknown:
        raise InvalidArgument.field(f"{field}.allowed_function_names", f"Not declared: {', '.join(unknown)}.")
    if calling.mode is FunctionCallingMode.NONE:
        return frozenset(), None
    allowed = frozenset(calling.allowed_function_names) or names
    if calling.mode is not FunctionCallingMode.ANY:
        return allowed, None
    if not tools:
        raise InvalidArgument.field(f"{field}.mode", "ANY demands a call, and no function is declared.")
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
    """(field, what is wrong) of numbers out of range and of wishes a text model cannot fulfil."""
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
    given = config.model_dump(include=set(REFUSED), exclude_none=True)
    return faults + [(name, "Has no meaning for a text model; leave it out.") for name in given]
