"""Public requests to ``Generate``: pure, and everything that can be refused without the engine is refused here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from scheduler.commands import Generate, SamplingParams
from serving.protocol.errors import invalid, unsupported
from serving.protocol.fields import Stops
from serving.protocol.native import GenerateRequest, SamplingFields
from serving.protocol.openai import ChatMessage, ChatRequest, CompletionRequest, Request
from serving.text_side import Limits, SamplingDefaults

DEFAULT_COMPLETION_TOKENS = 16

_T = TypeVar("_T")
_N = TypeVar("_N", int, float)


@dataclass(slots=True, frozen=True, kw_only=True)
class Work:
    """One choice: what the engine is asked, and how its tokens are read."""

    generate: Generate
    stops: tuple[str, ...] = ()
    keep_stop: bool = False
    skip_special_tokens: bool = True


@dataclass(slots=True, frozen=True, kw_only=True)
class Origin:
    """Where the requests of one HTTP call come from."""

    group: str
    """The id that the client knows."""
    suffix: str
    """Makes ids unique although clients repeat theirs."""
    defaults: SamplingDefaults
    limits: Limits
    adapter: str | None = None
    """That ``model`` names."""
    trace: str | None = None
    """The client's ``traceparent``."""


def chat_works(request: ChatRequest, prompt: list[int], origin: Origin) -> list[Work]:
    """The choices of a chat."""
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs needs logprobs to be true.", "top_logprobs")
    limit = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    if limit == 0:
        raise invalid("max_tokens must be at least 1.", "max_tokens")
    params = sampling_params(request, origin, prompt, "messages", limit, request.min_tokens)
    params = msgspec.structs.replace(
        params, seed=_seed(request.seed), logprobs=(request.top_logprobs or 0) if request.logprobs else None
    )
    return _openai_works(request, [prompt], [params], origin)


def completion_works(request: CompletionRequest, prompts: list[list[int]], origin: Origin) -> list[Work]:
    """The choices of a completion: those of the first prompt, then those of the second."""
    limit = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    if limit == 0 and not request.echo:
        raise invalid("max_tokens may be 0 only with echo.", "max_tokens")
    wanted = None if request.logprobs is None or request.logprobs is False else int(request.logprobs)
    params = [
        msgspec.structs.replace(
            sampling_params(request, origin, prompt, "prompt", limit, request.min_tokens),
            seed=_seed(request.seed),
            logprobs=wanted,
            prompt_logprobs=wanted if request.echo else None,
        )
        for prompt in prompts
    ]
    return _openai_works(request, prompts, params, origin)


def _openai_works(
    request: Request, prompts: list[list[int]], params: list[SamplingParams], origin: Origin
) -> list[Work]:
    copies = request.n or 1
    if (request.best_of or 0) > copies:
        raise unsupported("best_of")
    check_choices(len(prompts), copies, origin.limits)
    stops = stop_strings(request.stop)
    stream = bool(request.stream or stops)
    return [
        Work(
            generate=Generate(
                rid=f"{origin.group}-{origin.suffix}-{p * copies + copy}",
                group=origin.group,
                prompt=prompt,
                params=copy_params(params[p], copy),
                stream=stream,
                extra_key=request.extra_key or None,
                cache_salt=request.cache_salt or None,
                adapter=origin.adapter or request.lora_path or None,
                priority=request.priority,
                routing_key=request.routing_key or None,
                trace=origin.trace,
            ),
            stops=stops,
            keep_stop=bool(request.no_stop_trim or request.include_stop_str_in_output),
            skip_special_tokens=request.skip_special_tokens is not False,
        )
        for p, prompt in enumerate(prompts)
        for copy in range(copies)
    ]


def native_works(request: GenerateRequest, prompts: list[list[int]], origin: Origin) -> list[Work]:
    """The choices of ``/generate``."""
    fields = _per_prompt(request.sampling_params, len(prompts), "sampling_params", SamplingFields())
    copies = fields[0].n or 1
    if any((each.n or 1) != copies for each in fields):
        raise invalid("All sampling_params of a batch need the same n.", "sampling_params.n")
    check_choices(len(prompts), copies, origin.limits)
    groups = _per_prompt(request.rid, len(prompts), "rid", origin.group)
    adapters = _per_prompt(request.lora_path, len(prompts), "lora_path", None)
    scored = _per_prompt(request.return_logprob, len(prompts), "return_logprob", False)
    works: list[Work] = []
    for p, (prompt, each) in enumerate(zip(prompts, fields, strict=True)):
        params = _native_params(request, each, prompt, origin, scored=scored[p])
        stops = stop_strings(each.stop)
        for copy in range(copies):
            generate = Generate(
                rid=f"{groups[p]}-{origin.suffix}-{p * copies + copy}",
                group=groups[p],
                prompt=prompt,
                params=copy_params(params, copy),
                stream=bool(request.stream or stops),
                extra_key=request.extra_key or None,
                cache_salt=request.cache_salt or None,
                adapter=adapters[p] or None,
                priority=request.priority,
                routing_key=request.routing_key or None,
                trace=origin.trace,
            )
            skip = each.skip_special_tokens is not False
            works.append(
                Work(generate=generate, stops=stops, keep_stop=bool(each.no_stop_trim), skip_special_tokens=skip)
            )
    return works


def _native_params(
    request: GenerateRequest, fields: SamplingFields, prompt: list[int], origin: Origin, *, scored: bool
) -> SamplingParams:
    grammars = {
        "json_schema": fields.json_schema,
        "regex": fields.regex,
        "ebnf": fields.ebnf,
        "structural_tag": fields.structural_tag,
        "stop_regex": fields.stop_regex,
    }
    for name, value in grammars.items():
        if value:
            raise unsupported(f"sampling_params.{name}")
    params = sampling_params(fields, origin, prompt, "text", fields.max_new_tokens, fields.min_new_tokens)
    start = -1 if request.logprob_start_len is None else request.logprob_start_len
    if start >= len(prompt):
        raise invalid(f"logprob_start_len must lie within the prompt of {len(prompt)} tokens.", "logprob_start_len")
    top = request.top_logprobs_num or 0
    return msgspec.structs.replace(
        params,
        seed=_seed(fields.sampling_seed if fields.sampling_seed is not None else fields.seed),
        logprobs=top if scored else None,
        prompt_logprobs=top if scored and start >= 0 else None,
        prompt_logprobs_from=max(start, 0) if scored else 0,
    )


def sampling_params(
    fields: Request | SamplingFields,
    origin: Origin,
    prompt: list[int],
    param: str,
    max_tokens: int | None,
    min_tokens: int | None,
) -> SamplingParams:
    """Parameters of one prompt. A limit beyond the context is cut to it; None asks for the rest of the context."""
    room = check_prompt(prompt, origin.limits, param)
    limit = room if max_tokens is None else min(max_tokens, room)
    defaults = origin.defaults
    if (min_tokens or 0) > (room if max_tokens is None else max_tokens):
        raise invalid("min_tokens must not be more than max_tokens.", "min_tokens")
    _check_ids(fields.stop_token_ids or (), origin.limits, "stop_token_ids")
    return SamplingParams(
        max_new_tokens=limit,
        min_new_tokens=min(min_tokens or 0, limit),
        temperature=_first(fields.temperature, defaults.temperature, 1.0),
        top_p=_first(fields.top_p, defaults.top_p, 1.0),
        top_k=max(0, _first(fields.top_k, defaults.top_k, 0)),
        min_p=_first(fields.min_p, defaults.min_p, 0.0),
        repetition_penalty=_first(fields.repetition_penalty, defaults.repetition_penalty, 1.0),
        frequency_penalty=fields.frequency_penalty or 0.0,
        presence_penalty=fields.presence_penalty or 0.0,
        logit_bias=_logit_bias(fields.logit_bias or {}, origin.limits),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
    )


def check_prompt(prompt: list[int], limits: Limits, param: str) -> int:
    """Refuse what cannot be served; the number of tokens that may follow the prompt."""
    if not prompt:
        raise invalid("The prompt is empty.", param)
    _check_ids(prompt, limits, param)
    longest = min(limits.context_length - 1, limits.max_input)
    if len(prompt) > longest:
        raise invalid(
            f"The prompt has {len(prompt)} tokens; at most {longest} are allowed "
            f"(the context holds {limits.context_length}).",
            param,
            "context_length_exceeded",
        )
    return limits.context_length - len(prompt)


def check_choices(num_prompts: int, copies: int, limits: Limits) -> None:
    """Bound the prompts of a call, the copies of a prompt, and their product."""
    if copies > limits.max_choices:
        raise invalid(f"n is {copies}; at most {limits.max_choices} are allowed.", "n")
    if num_prompts > limits.max_prompts:
        raise invalid(f"There are {num_prompts} prompts; at most {limits.max_prompts} are allowed.", "prompt")
    if num_prompts * copies > max(limits.max_prompts, limits.max_choices):
        raise invalid(f"{num_prompts} prompts with n = {copies} are too many choices.", "n")


def stop_strings(stop: Stops | None) -> tuple[str, ...]:
    """Stop strings as a tuple without repeats."""
    return (stop,) if isinstance(stop, str) else tuple(dict.fromkeys(stop or ()))


def copy_params(params: SamplingParams, copy: int) -> SamplingParams:
    """Copy i of a seeded request draws with seed + i."""
    if params.seed is None or copy == 0:
        return params
    return msgspec.structs.replace(params, seed=_seed(params.seed + copy))


def split_prompts(prompt: str | Sequence[str | int | list[int]], param: str) -> list[str | list[int]]:
    """One text, texts, ids or lists of ids to a list of prompts; a mixture is refused."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid("The prompt is empty.", param)
    kind = type(prompt[0])
    if any(type(item) is not kind for item in prompt):
        raise invalid("The prompts must all be texts, or all be lists of token ids.", param)
    if kind is int:
        return [[item for item in prompt if isinstance(item, int)]]
    return [item for item in prompt if not isinstance(item, int)]


def turns(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Messages with their text parts joined."""
    return [_turn(message, i) for i, message in enumerate(messages)]


def _turn(message: ChatMessage, i: int) -> dict[str, str]:
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type != "text" or part.text is None:
                raise unsupported(f"messages[{i}].content of type '{part.type}'")
        content = "".join(part.text or "" for part in content)
    if content is None and message.role != "assistant":
        raise invalid("The message has no content.", f"messages[{i}].content")
    turn = {"role": message.role, "content": content or ""}
    return turn if message.name is None else turn | {"name": message.name}


def _check_ids(ids: Sequence[int], limits: Limits, param: str) -> None:
    if ids and max(ids) >= limits.vocab_size:
        raise invalid(f"A token id is not below the vocabulary's size of {limits.vocab_size}.", param)


def _logit_bias(bias: dict[str, float], limits: Limits) -> tuple[tuple[int, float], ...]:
    if any(not (key.isascii() and key.isdigit() and len(key) <= 10) for key in bias):
        raise invalid("The keys of logit_bias must be token ids.", "logit_bias")
    pairs = {int(key): value for key, value in bias.items()}
    _check_ids(list(pairs), limits, "logit_bias")
    return tuple(pairs.items())


def _per_prompt(given: _T | list[_T] | None, count: int, param: str, default: _T) -> list[_T]:
    """One value for each prompt, from one for all or a list."""
    if not isinstance(given, list):
        return [default if given is None else given] * count
    if len(given) != count:  # pyright: ignore[reportUnknownArgumentType]
        raise invalid(f"{param} is a list of another length than the prompts.", param)
    return given  # pyright: ignore[reportUnknownVariableType]


def _first(given: _N | None, default: _N | None, last: _N) -> _N:
    if given is not None:
        return given
    return last if default is None else default


def _seed(seed: int | None) -> int | None:
    return None if seed is None else seed % 2**32
