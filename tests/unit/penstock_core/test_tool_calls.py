"""A forced tool call becomes a schema that holds the output to it."""

import json
from typing import Any

import pytest

from penstock.common.v1 import chat_pb2
from penstock.inference.v1.generate_pb2 import GenerateRequest
from penstock_core.errors import InvalidRequest
from penstock_core.requests.tool_calls import hold_to_tool_call

CITY = {"properties": {"city": {"$ref": "#/$defs/name"}}, "$defs": {"name": {"type": "string"}}}


def request(choice: str, **tools: object) -> GenerateRequest:
    offered = [
        chat_pb2.Tool(name=name, parameters_json=json.dumps(p) if p is not None else "")
        for name, p in tools.items()
    ]
    return GenerateRequest(chat=chat_pb2.ChatPrompt(tools=offered, tool_choice=choice))


def held(asked: GenerateRequest) -> dict[str, Any]:
    hold_to_tool_call(asked)
    found: dict[str, Any] = json.loads(asked.constraint.json_schema)
    return found


@pytest.mark.parametrize("choice", ["", "none", "auto"])
def test_a_free_choice_constrains_nothing(choice: str) -> None:
    asked = request(choice, weather=CITY)
    hold_to_tool_call(asked)

    assert not asked.HasField("constraint")


def test_required_allows_each_tool_under_its_own_name() -> None:
    schema = held(request("required", weather=CITY, time=None))

    names = [call["properties"]["name"]["const"] for call in schema["anyOf"]]
    assert names == ["weather", "time"]
    assert all(call["required"] == ["name", "arguments"] for call in schema["anyOf"])


def test_a_named_tool_is_the_only_one() -> None:
    schema = held(request("time", weather=CITY, time=None))

    assert [call["properties"]["name"]["const"] for call in schema["anyOf"]] == ["time"]
    assert schema["$defs"]["0"]["additionalProperties"] is False


def test_references_of_parameters_follow_them_to_their_new_place() -> None:
    tree = {"properties": {"next": {"$ref": "#"}, "$ref": {"default": {"$ref": "#/kept"}}}}
    schema = held(request("required", weather=CITY, tree=tree))

    assert schema["$defs"]["0"]["properties"]["city"] == {"$ref": "#/$defs/0/$defs/name"}
    assert schema["$defs"]["1"]["properties"] == {
        "next": {"$ref": "#/$defs/1"},
        "$ref": {"default": {"$ref": "#/kept"}},
    }


def test_a_forced_call_takes_the_place_of_another_constraint() -> None:
    asked = request("required", time=None)
    asked.constraint.json_object = True

    assert "anyOf" in held(asked)


@pytest.mark.parametrize("parameters", ["{", "[1]"])
def test_parameters_that_are_no_object_are_refused(parameters: str) -> None:
    asked = request("required", time=None)
    asked.chat.tools[0].parameters_json = parameters

    with pytest.raises(InvalidRequest) as caught:
        hold_to_tool_call(asked)
    assert caught.value.field == "chat.tools[0].parameters_json"
