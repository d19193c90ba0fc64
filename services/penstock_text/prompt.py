"""From whatever prompt a request carries to the model's token ids."""

import asyncio

from penstock.inference.v1 import generate_pb2, inference_service_pb2
from penstock_core.blocks import unpack_tokens
from penstock_core.errors import InvalidRequest
from penstock_text.chat import ChatTemplate
from penstock_text.tokenizer import Tokenizer

MAX_PROMPT_CHARS = 4 * 1024 * 1024
# Tokenizing this much takes about 10 ms, which is as long as an event loop may stand still.
_INLINE_CHARS = 8 * 1024


async def encode_prompt(
    request: generate_pb2.GenerateRequest, tokenizer: Tokenizer, template: ChatTemplate | None
) -> list[int]:
    """Token ids of the prompt of a checked request; long texts are tokenized in a thread.

    Raises:
        InvalidRequest: a chat for a model without template or one that the template refuses; a text
            beyond ``MAX_PROMPT_CHARS``.
    """
    if request.WhichOneof("prompt") == "tokens":
        return unpack_tokens(request.tokens.ids)
    if request.WhichOneof("prompt") == "text":
        return await encode_text(request.text, tokenizer)
    if template is None:
        raise InvalidRequest(
            "this model has no chat template; send text or tokens", field="chat.messages"
        )
    if request.chat.ByteSize() <= _INLINE_CHARS:
        rendered = template.render(request.chat)
    else:
        rendered = await asyncio.to_thread(template.render, request.chat)
    return await encode_text(rendered, tokenizer, add_special_tokens=False, field="chat.messages")


async def encode_text(
    text: str, tokenizer: Tokenizer, *, add_special_tokens: bool = True, field: str = "text"
) -> list[int]:
    """Token ids of a text, in a thread if it is long. Raises InvalidRequest if it is far too long."""
    if len(text) > MAX_PROMPT_CHARS:
        raise InvalidRequest(
            f"{len(text)} characters; a prompt has at most {MAX_PROMPT_CHARS}", field=field
        )
    if len(text) <= _INLINE_CHARS:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)


async def encode_inputs(
    request: inference_service_pb2.EmbedRequest, tokenizer: Tokenizer
) -> list[list[int]]:
    """Token ids of what a checked request embeds; much text is tokenized in a thread.

    Raises:
        InvalidRequest: a text beyond ``MAX_PROMPT_CHARS``.
    """
    if request.token_inputs:
        return [unpack_tokens(tokens.ids) for tokens in request.token_inputs]
    texts = list(request.texts)
    for index, text in enumerate(texts):
        if len(text) > MAX_PROMPT_CHARS:
            message = f"{len(text)} characters; a text has at most {MAX_PROMPT_CHARS}"
            raise InvalidRequest(message, field=f"texts[{index}]")

    def encode() -> list[list[int]]:
        return [tokenizer.encode(text) for text in texts]

    if sum(map(len, texts)) <= _INLINE_CHARS:
        return encode()
    return await asyncio.to_thread(encode)
