"""``/generate``, and the tokenizer for those who want it alone."""

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.delivery import Delivery
from serving.front import Front
from serving.protocol import native
from serving.protocol.convert import check_choices, native_works, split_prompts
from serving.protocol.errors import invalid
from serving.protocol.native import DetokenizeBody, DetokenizeRequest, GenerateRequest, TokenizeBody, TokenizeRequest
from serving.protocol.openai import ChatRequest
from serving.protocol.reply_native import Asked, NativeWriter
from serving.routes.openai import encode_prompts, render
from serving.text_side import TextSide


def routes(front: Front) -> list[Route]:
    """The table of this module."""

    async def generate(request: Request) -> Delivery:
        return await _generate(front, request)

    async def tokenize(request: Request) -> Response:
        text = await front.need_text()
        body = await front.read(request, TokenizeRequest, {})
        front.check_model(body.model, text)
        return _json(await _tokenize(text, body))

    async def detokenize(request: Request) -> Response:
        text = await front.need_text()
        body = await front.read(request, DetokenizeRequest, {})
        front.check_model(body.model, text)
        return _json(_detokenize(text, body))

    return [
        Route("/generate", generate, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/v1/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/v1/detokenize", detokenize, methods=["POST"]),
    ]


async def _generate(front: Front, request: Request) -> Delivery:
    text = await front.need_text()
    body = await front.read(request, GenerateRequest, native.UNSUPPORTED)
    if (body.text is None) == (body.input_ids is None):
        raise invalid("Give either text or input_ids.", "text")
    given = body.text if body.text is not None else body.input_ids
    assert given is not None, "one of the two was checked"
    prompts = split_prompts(given, "text" if body.text is not None else "input_ids")
    check_choices(len(prompts), 1, text.limits)
    ids = await encode_prompts(text, prompts, add_special_tokens=True)
    single_rid = body.rid if isinstance(body.rid, str) else None
    works = native_works(body, ids, front.origin(request, text, single_rid, "gen"))
    is_batch = isinstance(given, list) and not isinstance(given[0], int)
    asked = [Asked(work.generate.group or "", work.generate.prompt, work.generate.params) for work in works]
    return Delivery(
        front.client,
        front.config.serving,
        works,
        NativeWriter(asked, listed=is_batch or len(works) > 1),
        text.tokenizer,
        endpoint="/generate",
        stream=bool(body.stream),
        abort_fails=False,
    )


async def _tokenize(text: TextSide, body: TokenizeRequest) -> TokenizeBody:
    if (body.prompt is None) == (body.messages is None):
        raise invalid("Give either prompt or messages.", "prompt")
    if body.messages is not None:
        chat = ChatRequest(
            messages=body.messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            chat_template_kwargs=body.chat_template_kwargs,
        )
        ids = [await text.tokenizer.encode(render(text, chat), add_special_tokens=False)]
    else:
        prompts = split_prompts(body.prompt or "", "prompt")
        check_choices(len(prompts), 1, text.limits)
        ids = await encode_prompts(text, prompts, add_special_tokens=body.add_special_tokens is not False)
    names = [[text.tokenizer.token_text(token) for token in each] for each in ids]
    listed = isinstance(body.prompt, list)
    return TokenizeBody(
        tokens=ids if listed else ids[0],
        count=[len(each) for each in ids] if listed else len(ids[0]),
        max_model_len=text.limits.context_length,
        token_strs=(names if listed else names[0]) if body.return_token_strs else UNSET,
    )


def _detokenize(text: TextSide, body: DetokenizeRequest) -> DetokenizeBody:
    lists = [item for item in body.tokens if isinstance(item, list)]
    ids = [item for item in body.tokens if isinstance(item, int)]
    if lists and ids:
        raise invalid("tokens must be ids, or lists of ids.", "tokens")
    for each in lists or [ids]:
        if any(token >= text.limits.vocab_size for token in each):
            raise invalid(f"A token id is not below the vocabulary's size of {text.limits.vocab_size}.", "tokens")
    skip = bool(body.skip_special_tokens)
    shown = [text.tokenizer.decode(each, skip_special_tokens=skip) for each in lists or [ids]]
    result = shown if lists else shown[0]
    return DetokenizeBody(prompt=result, text=result)


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
