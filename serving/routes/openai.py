"""``/v1``: chats, completions, models."""

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.delivery import Delivery
from serving.front import Front
from serving.protocol import openai
from serving.protocol.convert import Origin, chat_works, check_choices, completion_works, split_prompts, turns
from serving.protocol.errors import invalid, model_not_found, unsupported
from serving.protocol.openai import ChatRequest, CompletionRequest, ModelCard, ModelList
from serving.protocol.reply import Head
from serving.protocol.reply_chat import ChatWriter
from serving.protocol.reply_completion import CompletionWriter
from serving.text_side import TextSide
from serving.tokenizer import Segment


def routes(front: Front) -> list[Route]:
    """The table of this module."""

    async def chat(request: Request) -> Delivery:
        return await _chat(front, request)

    async def completions(request: Request) -> Delivery:
        return await _completions(front, request)

    async def models(request: Request) -> Response:
        text = await front.need_text()
        cards = [_card(front, text, name) for name in front.served_names(text)]
        return Response(msgspec.json.encode(ModelList(cards)), media_type="application/json")

    async def model(request: Request) -> Response:
        text = await front.need_text()
        name: str = request.path_params["name"]
        if name not in front.served_names(text):
            raise model_not_found(name)
        return Response(msgspec.json.encode(_card(front, text, name)), media_type="application/json")

    async def embeddings(_: Request) -> Response:
        raise unsupported("embeddings")

    return [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
    ]


async def _chat(front: Front, request: Request) -> Delivery:
    text = await front.need_text()
    body = await front.read(request, ChatRequest, openai.CHAT_UNSUPPORTED)
    model = front.check_model(body.model, text)
    prompt = await text.tokenizer.encode(render(text, body), add_special_tokens=False)
    origin = front.origin(request, text, body.rid or body.request_id, "chatcmpl", front.adapter(body.model, text))
    works = chat_works(body, prompt, origin)
    top = (body.top_logprobs or 0) if body.logprobs else None
    writer = ChatWriter(_head(front, text, body, origin, model), len(works), top, text.tokenizer)
    return Delivery(
        front.client,
        front.config.serving,
        works,
        writer,
        text.tokenizer,
        endpoint="/v1/chat/completions",
        stream=bool(body.stream),
        abort_fails=True,
    )


async def _completions(front: Front, request: Request) -> Delivery:
    text = await front.need_text()
    body = await front.read(request, CompletionRequest, openai.SHARED_UNSUPPORTED)
    model = front.check_model(body.model, text)
    prompts = split_prompts(body.prompt, "prompt")
    check_choices(len(prompts), body.n or 1, text.limits)
    ids = await encode_prompts(text, prompts, add_special_tokens=body.add_special_tokens is not False)
    adapter = front.adapter(body.model, text)
    origin = front.origin(request, text, body.rid or body.request_id, "cmpl", adapter)
    works = completion_works(body, ids, origin)
    echoes: list[tuple[str, list[int]]] = []
    if body.echo:
        shown = [_shown(text, prompt) for prompt in prompts]
        echoes = [(shown[i // (body.n or 1)], work.generate.prompt) for i, work in enumerate(works)]
    top = None if body.logprobs is None or body.logprobs is False else int(body.logprobs)
    writer = CompletionWriter(_head(front, text, body, origin, model), top, text.tokenizer, echoes)
    return Delivery(
        front.client,
        front.config.serving,
        works,
        writer,
        text.tokenizer,
        endpoint="/v1/completions",
        stream=bool(body.stream),
        abort_fails=True,
    )


def render(text: TextSide, body: ChatRequest) -> list[Segment]:
    """A chat as the segments of its prompt."""
    if text.template is None:
        raise invalid("This model has no chat template; use /v1/completions.", "messages", "no_chat_template")
    continued = bool(body.continue_final_message)
    generate = body.add_generation_prompt
    if continued and generate:
        raise invalid("Not together with add_generation_prompt.", "continue_final_message")
    generate = not continued if generate is None else generate
    return text.template.render(
        turns(body.messages), body.chat_template_kwargs or {}, continue_final=continued, generate=generate
    )


async def encode_prompts(
    text: TextSide, prompts: Sequence[str | list[int]], *, add_special_tokens: bool
) -> list[list[int]]:
    """Prompts as ids, in order."""
    encode = text.tokenizer.encode
    return [
        await encode([Segment(prompt, literal=False)], add_special_tokens=add_special_tokens)
        if isinstance(prompt, str)
        else prompt
        for prompt in prompts
    ]


def _shown(text: TextSide, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else text.tokenizer.decode(prompt, skip_special_tokens=False)


def _head(front: Front, text: TextSide, body: openai.Request, origin: Origin, model: str) -> Head:
    options = body.stream_options or openai.StreamOptions()
    return Head(
        id=origin.group,
        created=front.now(),
        model=model,
        fingerprint=text.fingerprint,
        copies=body.n or 1,
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        explain=bool(body.explain),
    )


def _card(front: Front, text: TextSide, name: str) -> ModelCard:
    return ModelCard(name, front.created, text.limits.context_length, text.ready.served_name)
