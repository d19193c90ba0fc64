"""How long and how many the parts of a request may be, so that nobody pays for somebody's excess.

The message as a whole is bounded by gRPC (16 MiB); these bounds are for what is copied, echoed,
compiled or rendered. ``validation`` checks what values mean.
"""

from collections.abc import Iterator

from penstock.common.v1 import chat_pb2, sampling_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.errors import InvalidRequest

MAX_NAME_CHARS = 256
MAX_TOOLS = 128
MAX_TOOL_CALLS = 128
MAX_JSON_CHARS = 1 << 18
MAX_NESTING = 64
MAX_OPTIONS = 4096
MAX_EMITTED = 64
MAX_EXCLUDED = 1024

Problems = Iterator[tuple[str, str]]


def check_bounds(request: generate_pb2.GenerateRequest) -> None:
    """Raise InvalidRequest with the field's path if a part of the request is too large."""
    for problems in _parts(request):
        for field, message in problems:
            raise InvalidRequest(message, field=field)


def check_name(name: str, field: str = "model") -> None:
    """Raise InvalidRequest if a name is too long to be one."""
    if len(name) > MAX_NAME_CHARS:
        raise InvalidRequest(f"{field} is longer than {MAX_NAME_CHARS} characters", field=field)


def check_excluded(worker_ids: int) -> None:
    """Raise InvalidRequest if more workers are excluded than there can be."""
    if worker_ids > MAX_EXCLUDED:
        message = f"{worker_ids} excluded workers; at most {MAX_EXCLUDED}"
        raise InvalidRequest(message, field="excluded_worker_ids")


def nesting(text: str) -> int:
    """How deep brackets nest in a JSON text, told without parsing it; strings are left out."""
    deepest = depth = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _parts(request: generate_pb2.GenerateRequest) -> Iterator[Problems]:
    """Of what is there: to look at what is not costs as much."""
    yield _names(request)
    if request.HasField("chat"):
        yield _chat(request.chat)
    if request.HasField("constraint"):
        yield _shape(request.constraint)


def _names(request: generate_pb2.GenerateRequest) -> Problems:
    named = (
        ("model", request.model),
        ("adapter", request.adapter),
        ("vote_field", request.vote_field),
        ("resume.resume_token", request.resume.resume_token),
        ("resume.model_revision", request.resume.model_revision),
        ("chat.tool_choice", request.chat.tool_choice),
        ("coalescing.group", request.coalescing.group),
    )
    for field, name in named:
        if len(name) > MAX_NAME_CHARS:
            yield field, f"{field} is longer than {MAX_NAME_CHARS} characters"
    if len(request.resume.choices) > MAX_EMITTED:
        yield "resume.choices", f"more than {MAX_EMITTED} samples"


def _chat(chat: chat_pb2.ChatPrompt) -> Problems:
    if len(chat.tools) > MAX_TOOLS:
        yield "chat.tools", f"{len(chat.tools)} tools; at most {MAX_TOOLS}"
    yield from _document("chat.template_variables_json", chat.template_variables_json)
    for index, tool in enumerate(chat.tools):
        if len(tool.name) > MAX_NAME_CHARS:
            yield f"chat.tools[{index}].name", f"longer than {MAX_NAME_CHARS} characters"
        yield from _document(f"chat.tools[{index}].parameters_json", tool.parameters_json)
    for index, message in enumerate(chat.messages):
        if max(map(len, (message.role, message.name, message.tool_call_id))) > MAX_NAME_CHARS:
            where = f"chat.messages[{index}]"
            yield where, f"{where}: role, name or id is longer than {MAX_NAME_CHARS} characters"
        if len(message.tool_calls) > MAX_TOOL_CALLS:
            yield f"chat.messages[{index}].tool_calls", f"more than {MAX_TOOL_CALLS} calls"


def _shape(constraint: sampling_pb2.Constraint) -> Problems:
    yield from _document("constraint.json_schema", constraint.json_schema)
    for field, text in (("regex", constraint.regex), ("grammar", constraint.grammar)):
        if len(text) > MAX_JSON_CHARS:
            yield f"constraint.{field}", f"{field} is longer than {MAX_JSON_CHARS} characters"
    options = constraint.choice.options
    if len(options) > MAX_OPTIONS or sum(map(len, options)) > MAX_JSON_CHARS:
        message = f"at most {MAX_OPTIONS} options of {MAX_JSON_CHARS} characters together"
        yield "constraint.choice.options", message


def _document(field: str, text: str) -> Problems:
    if len(text) > MAX_JSON_CHARS:
        yield field, f"{field} is longer than {MAX_JSON_CHARS} characters"
    elif text and nesting(text) > MAX_NESTING:
        yield field, f"{field} nests deeper than {MAX_NESTING} levels"
