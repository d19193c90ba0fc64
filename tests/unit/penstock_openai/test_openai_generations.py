"""What a body asks of the router, and how its answer will look."""

from penstock.common.v1 import sampling_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.blocks import unpack_tokens
from penstock_openai.generations import CHAT, COMPLETIONS, generation_of
from penstock_openai.responses import Collector, Head, Shape

HEAD = Head("id-1", "m", 7)
HELLO = [{"role": "user", "content": "hello"}]


def test_a_completion_asks_for_sixteen_tokens_unless_it_says_otherwise() -> None:
    body = {"model": "m", "prompt": "x"}

    assert generation_of(COMPLETIONS, body).requests[0].stop.max_tokens == 16
    assert generation_of(COMPLETIONS, body | {"max_tokens": 3}).requests[0].stop.max_tokens == 3


def test_each_prompt_is_a_request_of_its_own_with_the_same_wishes() -> None:
    body = {"model": "m", "prompt": [[1, 2], [3]], "n": 2, "seed": 4}

    generation = generation_of(COMPLETIONS, body)

    assert generation.shape == Shape(prompts=2, samples=2)
    assert [unpack_tokens(r.tokens.ids) for r in generation.requests] == [[1, 2], [3]]
    wanted = sampling_pb2.SamplingParams(n=2, seed=4)
    assert [r.sampling for r in generation.requests] == [wanted, wanted]


def test_a_completions_wishes_arrive_as_they_were() -> None:
    wishes = {
        "temperature": 0.5, "top_k": 4, "seed": -1, "stop": "END", "max_tokens": 9, "logprobs": 3,
        "logit_bias": {"17": -100}, "presence_penalty": 1, "echo": True, "user": "me",
    }  # fmt: skip

    (request,) = generation_of(COMPLETIONS, {"model": "m", "prompt": "x", **wishes}).requests

    assert (request.model, request.text) == ("m", "x")
    assert (request.sampling.temperature, request.sampling.top_k) == (0.5, 4)
    assert request.sampling.seed == 2**64 - 1
    assert request.sampling.presence_penalty == 1
    assert dict(request.sampling.logit_bias) == {17: -100}
    assert (list(request.stop.strings), request.stop.max_tokens) == (["END"], 9)
    assert (request.output.logprobs, request.output.echo) == (3, True)


def test_the_calls_of_an_assistant_turn_are_kept() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = {"role": "tool", "content": "3", "tool_call_id": "c1"}

    (request,) = generation_of(CHAT, {"model": "m", "messages": [*HELLO, turn, answer]}).requests

    assert request.chat.messages[1].tool_calls[0].arguments_json == "{}"
    assert request.chat.messages[2].tool_call_id == "c1"


def test_a_chats_answer_looks_like_a_chat() -> None:
    generation = generation_of(CHAT, {"model": "m", "messages": HELLO})
    collector = Collector(generation.form, generation.shape)
    delta = generate_pb2.Delta(text="hi")
    collector.add(0, generate_pb2.GenerateResponse(delta=delta))

    answer = collector.answer(HEAD)

    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == "hi"  # type: ignore[index]


def test_a_wish_for_absurdly_many_samples_costs_nothing_before_it_is_refused() -> None:
    generation = generation_of(COMPLETIONS, {"model": "m", "prompt": "x", "n": 2**31 - 1})

    Collector(generation.form, generation.shape)

    assert generation.requests[0].sampling.n == 2**31 - 1
