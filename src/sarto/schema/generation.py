"""Content, Part and the generateContent messages. A kind of part that a text model does not support has a field here,
so that it is refused by name and never dropped."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from pydantic.alias_generators import to_camel

from sarto.errors import InvalidArgument
from sarto.schema.wire import Boolean, Bytes, Double, Int32, JsonValue, Message, ProtoEnum, Struct, Text, Timestamp


class Blob(Message):
    mime_type: Text = ""
    data: Bytes = b""
    display_name: Text = ""


class FileData(Message):
    mime_type: Text = ""
    file_uri: Text = ""
    display_name: Text = ""


class FunctionCall(Message):
    id: Text = ""
    name: Text = ""
    args: Struct | None = None
    partial_args: list[Struct] = Field(default_factory=list)
    will_continue: Boolean | None = None


class FunctionResponse(Message):
    id: Text = ""
    name: Text = ""
    response: Struct | None = None
    parts: list[Struct] = Field(default_factory=list)
    scheduling: Text = ""
    will_continue: Boolean | None = None


class Part(Message):
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "data": (
            "text", "inline_data", "file_data", "function_call", "function_response",
            "executable_code", "code_execution_result",
        ),
    }  # fmt: skip

    text: Text | None = None
    inline_data: Blob | None = None
    file_data: FileData | None = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None
    executable_code: Struct | None = None
    code_execution_result: Struct | None = None
    video_metadata: Struct | None = None
    media_resolution: Struct | None = None
    tool_call: Struct | None = None
    tool_response: Struct | None = None
    audio_transcription: Struct | None = None
    media_processing: Struct | None = None
    speech_metadata: Struct | None = None
    part_metadata: Struct | None = None
    thought: Boolean | None = None
    thought_signature: Bytes | None = None


class Content(Message):
    """One turn: `role` is `user` or `model` (tool responses have `user` or `function`)."""

    role: Text = ""
    parts: list[Part] = Field(default_factory=list)


class FunctionDeclaration(Message):
    name: Text = ""
    description: Text = ""
    parameters: Struct | None = None
    parameters_json_schema: JsonValue = None
    response: Struct | None = None
    response_json_schema: JsonValue = None
    behavior: Text = ""


class Tool(Message):
    """Function declarations; every other kind of tool is hosted by Google and refused by name."""

    function_declarations: list[FunctionDeclaration] = Field(default_factory=list)
    retrieval: Struct | None = None
    google_search: Struct | None = None
    google_search_retrieval: Struct | None = None
    google_maps: Struct | None = None
    enterprise_web_search: Struct | None = None
    code_execution: Struct | None = None
    url_context: Struct | None = None
    computer_use: Struct | None = None
    parallel_ai_search: Struct | None = None
    exa_ai_search: Struct | None = None
    file_search: Struct | None = None

    mcp_servers: list[Struct] = Field(default_factory=list)


def refuse_hosted(tools: list[Tool]) -> None:
    """Raises InvalidArgument for a tool of Google's. Call it before a request is passed on, because an empty tool is
    lost then."""
    for index, tool in enumerate(tools):
        for name in sorted(tool.model_fields_set - {"function_declarations"}):
            raise InvalidArgument.field(
                f"tools[{index}].{name}", f"{to_camel(name)} is hosted by Google; leave it out."
            )


class FunctionCallingMode(ProtoEnum):
    MODE_UNSPECIFIED = "MODE_UNSPECIFIED"
    AUTO = "AUTO"
    ANY = "ANY"
    NONE = "NONE"
    VALIDATED = "VALIDATED"

    @classmethod
    def numbers(cls) -> dict[int, str]:
        return {0: "MODE_UNSPECIFIED", 1: "AUTO", 2: "ANY", 3: "NONE", 5: "VALIDATED"}


class Modality(ProtoEnum):
    MODALITY_UNSPECIFIED = "MODALITY_UNSPECIFIED"
    TEXT = "TEXT"
    IMAGE = "IMAGE"
    AUDIO = "AUDIO"


class MediaResolution(ProtoEnum):
    MEDIA_RESOLUTION_UNSPECIFIED = "MEDIA_RESOLUTION_UNSPECIFIED"
    MEDIA_RESOLUTION_LOW = "MEDIA_RESOLUTION_LOW"
    MEDIA_RESOLUTION_MEDIUM = "MEDIA_RESOLUTION_MEDIUM"
    MEDIA_RESOLUTION_HIGH = "MEDIA_RESOLUTION_HIGH"


class FunctionCallingConfig(Message):
    mode: FunctionCallingMode | None = None
    allowed_function_names: list[Text] = Field(default_factory=list)
    stream_function_call_arguments: Boolean | None = None


class ToolConfig(Message):
    function_calling_config: FunctionCallingConfig | None = None
    retrieval_config: Struct | None = None
    include_server_side_tool_invocations: Boolean | None = None


class GenerationConfig(Message):
    temperature: Double | None = None
    top_p: Double | None = None
    top_k: Double | None = None
    candidate_count: Int32 | None = None
    max_output_tokens: Int32 | None = None
    stop_sequences: list[Text] = Field(default_factory=list)
    seed: Int32 | None = None
    presence_penalty: Double | None = None
    frequency_penalty: Double | None = None
    response_logprobs: Boolean | None = None
    logprobs: Int32 | None = None
    response_mime_type: Text = ""
    response_schema: Struct | None = None
    response_json_schema: JsonValue = None
    response_modalities: list[Modality] = Field(default_factory=list)
    routing_config: Struct | None = None
    model_selection: Struct | None = Field(default=None, serialization_alias="modelConfig")
    audio_timestamp: Boolean | None = None
    media_resolution: MediaResolution | None = None
    speech_config: Struct | None = None
    thinking_config: Struct | None = None
    image_config: Struct | None = None
    enable_affective_dialog: Boolean | None = None
    enable_enhanced_civic_answers: Boolean | None = None
    translation_config: Struct | None = None
    audio_transcription_config: Struct | None = None
    response_format: Struct | None = None

    SPELLINGS: ClassVar[dict[str, str]] = {
        "model_config": "model_selection",
        "model_selection_config": "model_selection",
    }


class GenerateContentRequest(Message):
    """`model` may also be in the body, as some clients send it; the URL decides."""

    model: Text = ""
    contents: list[Content] = Field(default_factory=list)
    system_instruction: Content | None = None
    cached_content: Text = ""
    tools: list[Tool] = Field(default_factory=list)
    tool_config: ToolConfig | None = None
    labels: dict[str, Text] = Field(default_factory=dict)
    safety_settings: list[Struct] = Field(default_factory=list)
    model_armor_config: Struct | None = None
    generation_config: GenerationConfig | None = None


class FinishReason(ProtoEnum):
    FINISH_REASON_UNSPECIFIED = "FINISH_REASON_UNSPECIFIED"
    STOP = "STOP"
    MAX_TOKENS = "MAX_TOKENS"
    SAFETY = "SAFETY"
    RECITATION = "RECITATION"
    OTHER = "OTHER"
    BLOCKLIST = "BLOCKLIST"
    PROHIBITED_CONTENT = "PROHIBITED_CONTENT"
    SPII = "SPII"
    MALFORMED_FUNCTION_CALL = "MALFORMED_FUNCTION_CALL"


class LogprobsCandidate(Message):
    token: Text = ""
    token_id: Int32 | None = None
    log_probability: Double | None = None


class TopCandidates(Message):
    candidates: list[LogprobsCandidate] = Field(default_factory=list)


class LogprobsResult(Message):
    top_candidates: list[TopCandidates] = Field(default_factory=list)
    chosen_candidates: list[LogprobsCandidate] = Field(default_factory=list)


class Candidate(Message):
    index: Int32 | None = None
    content: Content | None = None
    finish_reason: FinishReason | None = None
    finish_message: Text = ""
    avg_logprobs: Double | None = None
    logprobs_result: LogprobsResult | None = None
    safety_ratings: list[Struct] = Field(default_factory=list)


class ModalityTokenCount(Message):
    modality: Text = ""
    token_count: Int32 | None = None


class UsageMetadata(Message):
    prompt_token_count: Int32 | None = None
    candidates_token_count: Int32 | None = None
    total_token_count: Int32 | None = None
    cached_content_token_count: Int32 | None = None
    prompt_tokens_details: list[ModalityTokenCount] = Field(default_factory=list)
    candidates_tokens_details: list[ModalityTokenCount] = Field(default_factory=list)
    traffic_type: Text = ""


class GenerateContentResponse(Message):
    candidates: list[Candidate] = Field(default_factory=list)
    usage_metadata: UsageMetadata | None = None
    model_version: Text = ""
    response_id: Text = ""
    create_time: Timestamp | None = None


class CountTokensRequest(Message):
    endpoint: Text = ""
    model: Text = ""
    contents: list[Content] = Field(default_factory=list)
    instances: list[JsonValue] = Field(default_factory=list)
    system_instruction: Content | None = None
    tools: list[Tool] = Field(default_factory=list)
    generation_config: GenerationConfig | None = None


class CountTokensResponse(Message):
    total_tokens: Int32 = 0
    total_billable_characters: Int32 | None = None
    prompt_tokens_details: list[ModalityTokenCount] = Field(default_factory=list)


def append_chunk(whole: GenerateContentResponse, chunk: GenerateContentResponse) -> None:
    """Add a chunk of a stream to the answer so far; all chunks together give what `generateContent` answers."""
    whole.model_version, whole.response_id = chunk.model_version, chunk.response_id
    whole.create_time = chunk.create_time
    whole.usage_metadata = chunk.usage_metadata or whole.usage_metadata
    for piece in chunk.candidates:
        same = [candidate for candidate in whole.candidates if (candidate.index or 0) == (piece.index or 0)]
        if same:
            _join(same[0], piece)
        else:
            whole.candidates.append(piece)
            whole.candidates.sort(key=lambda candidate: candidate.index or 0)


def _join(candidate: Candidate, piece: Candidate) -> None:
    candidate.finish_reason = piece.finish_reason or candidate.finish_reason
    candidate.finish_message = piece.finish_message or candidate.finish_message
    candidate.safety_ratings = piece.safety_ratings or candidate.safety_ratings
    if piece.avg_logprobs is not None:
        candidate.avg_logprobs = piece.avg_logprobs
    if piece.logprobs_result is not None:
        so_far = candidate.logprobs_result or LogprobsResult()
        so_far.top_candidates += piece.logprobs_result.top_candidates
        so_far.chosen_candidates += piece.logprobs_result.chosen_candidates
        candidate.logprobs_result = so_far
    content = candidate.content or Content(role="model")
    for part in (piece.content or Content()).parts:
        last = content.parts[-1] if content.parts else None
        if last is not None and _is_plain_text(part) and not part.text:
            continue
        if last is not None and _is_plain_text(last) and _is_plain_text(part):
            content.parts[-1] = Part(text=(last.text or "") + (part.text or ""))
        else:
            content.parts.append(part)
    candidate.content = content


def _is_plain_text(part: Part) -> bool:
    return part.text is not None and not part.thought and part.function_call is None
