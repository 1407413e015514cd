"""The OpenAI surface as structs: what is read, and what is written."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from serving.protocol.fields import (
    CacheKey,
    Choices,
    ClientId,
    Count,
    Label,
    LogitBias,
    MinP,
    Name,
    Penalty,
    Priority,
    RepetitionPenalty,
    Seed,
    StopIds,
    Stops,
    Temperature,
    Text,
    Token,
    TokenIds,
    TopK,
    TopLogprobs,
    TopP,
)

Scalar = Annotated[str, Meta(max_length=65_536)] | int | float | bool | None
TemplateValue = Scalar | Annotated[list[Scalar], Meta(max_length=1024)]

SHARED_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "response_format": ({"type": "text"},),
    "suffix": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "stop_regex": (),
    "bad_words": (),
    "session_params": (),
    "session_id": (),
    "custom_logit_processor": (),
    "return_hidden_states": (),
    "prompt_logprobs": (),
    "prompt_embeds": (),
    "use_beam_search": (),
    "truncate_prompt_tokens": (),
}
"""Fields that are known and not served yet, with the values that ask for nothing."""

CHAT_UNSUPPORTED = SHARED_UNSUPPORTED | {
    "tools": (),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True,),
    "functions": (),
    "function_call": ("none", "auto"),
    "reasoning": (),
    "reasoning_effort": ("none",),
    "reasoning_content": (),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
    "include_reasoning": (True,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "chat_template": (),
    "documents": (),
    "input_ids": (),
    "echo": (),
}


# ---- read


class StreamOptions(Struct, frozen=True):
    """What a stream says besides its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Request(Struct, frozen=True, kw_only=True):
    """What chats and completions have in common. Null means the default everywhere."""

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    stop_token_ids: StopIds | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    include_stop_str_in_output: bool | None = None
    priority: Priority | None = None
    routing_key: Label | None = None
    rid: ClientId | None = None
    request_id: ClientId | None = None
    extra_key: CacheKey | None = None
    cache_salt: CacheKey | None = None
    lora_path: Label | None = None
    """An adapter by name; ``model`` may name it too, as ``model:adapter``, which comes first."""
    user: Label | None = None
    explain: bool | None = None
    """Whether the usage says what the time was spent on."""


class ContentPart(Struct, frozen=True):
    """A piece of a message; only text can be read yet."""

    type: Annotated[str, Meta(max_length=64)]
    text: Text | None = None


class ChatMessage(Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[ContentPart], Meta(max_length=4096)] | None = None
    name: Label | None = None


class ChatRequest(Request, frozen=True, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=16_384)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, TemplateValue], Meta(max_length=64)] | None = None


class CompletionRequest(Request, frozen=True, kw_only=True):
    """``POST /v1/completions``."""

    prompt: Text | Annotated[list[Text | Token | TokenIds], Meta(max_length=2**24)]
    """One text or list of ids, or several of one kind."""
    echo: bool | None = None
    logprobs: TopLogprobs | bool | None = None
    """A number; false, which routers send, asks for none."""
    add_special_tokens: bool | None = None


# ---- written


class PromptTokensDetails(Struct, frozen=True):
    """Where the prompt came from."""

    cached_tokens: int


class Usage(Struct, frozen=True):
    """What a call took. The prompt counts once, however many choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    waits: dict[str, float] | UnsetType = UNSET
    """With ``explain``: seconds by reason of the choice that took longest, up to its last token."""


class TopLogprob(Struct, frozen=True):
    """One alternative of a position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(Struct, frozen=True):
    """One position of a chat's answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """All positions of a chat's answer."""

    content: list[ChatLogprob]
    refusal: None = None


class AnswerMessage(Struct, frozen=True):
    """The model's turn."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


FinishWord = Literal["stop", "length"]


class ChatChoice(Struct, frozen=True):
    """One answer of a chat."""

    index: int
    message: AnswerMessage
    finish_reason: FinishWord
    logprobs: ChatLogprobs | None = None
    matched_stop: int | str | None = None


class ChatDelta(Struct, frozen=True, omit_defaults=True):
    """What is new of an answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    """What is new of one choice."""

    index: int
    delta: ChatDelta
    finish_reason: FinishWord | None = None
    logprobs: ChatLogprobs | None = None
    matched_stop: int | str | UnsetType | None = UNSET


class CompletionLogprobs(Struct, frozen=True):
    """Positions as parallel lists; with ``echo`` the first has no log probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct, frozen=True):
    """One continuation, or what is new of it."""

    index: int
    text: str
    finish_reason: FinishWord | None = None
    logprobs: CompletionLogprobs | None = None
    matched_stop: int | str | UnsetType | None = UNSET


Object = Literal["chat.completion", "chat.completion.chunk", "text_completion"]


class Body(Struct, frozen=True):
    """Every reply of the two endpoints, whole or a chunk."""

    id: str
    object: Object
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice] | list[ChatChunkChoice] | list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class ModelCard(Struct, frozen=True):
    """One served name."""

    id: str
    created: int
    max_model_len: int
    root: str
    object: Literal["model"] = "model"
    owned_by: str = "radjax"
    parent: None = None


class ModelList(Struct, frozen=True):
    """``GET /v1/models``."""

    data: list[ModelCard]
    object: Literal["list"] = "list"
