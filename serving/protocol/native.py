"""``/generate`` and the tokenizer's endpoints as structs."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from scheduler.commands import PauseMode
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
    Text,
    Token,
    TokenIds,
    TopK,
    TopLogprobs,
    TopP,
)
from serving.protocol.openai import ChatMessage, TemplateValue

UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "input_embeds": (),
    "image_data": (),
    "audio_data": (),
    "video_data": (),
    "session_params": (),
    "custom_logit_processor": (),
    "return_hidden_states": (),
    "token_ids_logprob": (),
    "return_text_in_logprobs": (),
    "bootstrap_host": (),
}

# ---- read


class SamplingFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """``sampling_params`` of ``/generate``. Null means the default."""

    max_new_tokens: Count | None = 128
    min_new_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    sampling_seed: Seed | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    stop_token_ids: StopIds | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    n: Choices | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    stop_regex: str | list[str] | None = None


class GenerateRequest(Struct, frozen=True, kw_only=True):
    """``POST /generate``: one prompt, or a list of them."""

    text: Text | list[Text] | None = None
    input_ids: Annotated[list[Token | TokenIds], Meta(max_length=2**24)] | None = None
    sampling_params: SamplingFields | list[SamplingFields] | None = None
    rid: ClientId | list[ClientId] | None = None
    stream: bool | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    top_logprobs_num: TopLogprobs | None = None
    priority: Priority | None = None
    routing_key: Label | None = None
    extra_key: CacheKey | None = None
    cache_salt: CacheKey | None = None
    lora_path: Label | list[Label | None] | None = None
    """An adapter by name, for all prompts or for each."""


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """``POST /tokenize``: a prompt, several, or a chat."""

    model: Name | None = None
    prompt: Text | list[Text] | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=16_384)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, TemplateValue], Meta(max_length=64)] | None = None


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    """``POST /detokenize``."""

    tokens: Annotated[list[Token | Annotated[list[Token], Meta(max_length=2**24)]], Meta(max_length=2**24)]
    model: Name | None = None
    skip_special_tokens: bool | None = None


class AbortRequest(Struct, frozen=True, kw_only=True):
    """``POST /abort_request``."""

    rid: Annotated[str, Meta(max_length=256)] | None = None
    abort_all: bool | None = None


class AttachStorageRequest(Struct, frozen=True, kw_only=True):
    """``PUT /hicache/storage-backend``."""

    hicache_storage_backend: Literal["file"] = "file"
    hicache_storage_prefetch_policy: Literal["best_effort", "wait_complete", "timeout"] | None = None
    directory: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    """Ours: by default ``cache.storage_dir``."""


class PauseRequest(Struct, frozen=True, kw_only=True):
    """``POST /pause_generation``."""

    mode: PauseMode | None = None


class SettingsRequest(Struct, frozen=True, kw_only=True):
    """``POST /set_internal_state``."""

    server_args: Annotated[dict[Name, int | float], Meta(min_length=1, max_length=64)]


# ---- written

LogprobTriple = tuple[float | None, int, None]
"""Log probability, token id, and a place for the token's text."""


class Stopped(Struct, frozen=True, tag="stop", tag_field="type"):
    """Ended by a stop token or string."""

    matched: int | str | None


class OutOfLength(Struct, frozen=True, tag="length", tag_field="type"):
    """Ended by its limit."""

    length: int


class Aborted(Struct, frozen=True, tag="abort", tag_field="type"):
    """Ended by somebody else, or by a time-out."""

    message: str = "Aborted"
    status_code: int | UnsetType = UNSET


class MetaInfo(Struct, frozen=True, kw_only=True):
    """Everything about an answer but its text."""

    id: str
    finish_reason: Stopped | OutOfLength | Aborted | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    e2e_latency: float | UnsetType = UNSET
    num_retractions: int | UnsetType = UNSET
    input_token_logprobs: list[LogprobTriple] | UnsetType = UNSET
    output_token_logprobs: list[LogprobTriple] | UnsetType = UNSET
    input_top_logprobs: list[list[LogprobTriple] | None] | UnsetType = UNSET
    output_top_logprobs: list[list[LogprobTriple] | None] | UnsetType = UNSET


class GenerateBody(Struct, frozen=True, kw_only=True):
    """One answer of ``/generate``, whole or as far as it has come."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: int | UnsetType = UNSET


class TokenizeBody(Struct, frozen=True, kw_only=True):
    """Reply of ``/tokenize``; lists of lists for a list of prompts."""

    tokens: list[int] | list[list[int]]
    count: int | list[int]
    max_model_len: int
    token_strs: list[str] | list[list[str]] | UnsetType = UNSET


class DetokenizeBody(Struct, frozen=True, kw_only=True):
    """Reply of ``/detokenize``, under both names that clients read."""

    prompt: str | list[str]
    text: str | list[str]


class Success(Struct, frozen=True):
    """Reply of an administrative call."""

    success: bool
    message: str = ""
    status: Literal["ok", "failed"] = "ok"
