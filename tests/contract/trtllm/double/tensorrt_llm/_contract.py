"""Builds the package's classes and signatures from the contract's JSON."""

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pydantic
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter

CONTRACT: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "contract.json").read_text(encoding="utf-8")
)
Validator = Callable[[Any], None]


class _Foreign:
    """A module that the types mention and that is not here: anything of it is anything."""

    def __getattr__(self, _name: str) -> object:
        return Any


class _Names(dict[str, object]):
    def __missing__(self, _name: str) -> object:
        return Any


def type_of(text: str, known: Mapping[str, object]) -> Any:
    """The type that a contract's type text names; classes it does not know are Any."""
    names = _Names(
        {name: getattr(typing, name) for name in ("Optional", "Union", "List", "Literal")}
    )
    names |= {"Dict": dict, "Set": set, "Path": Path, "dict": dict, "object": object}
    names |= {"torch": _Foreign(), "tllm": _Foreign(), "tllme": _Foreign()}
    names |= {kind.__name__: kind for kind in (int, float, str, bool, bytes)}
    names.update(known)
    return eval(text, {"__builtins__": {}}, names)


class Strict(BaseModel):
    """As the package's StrictBaseModel."""

    model_config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, protected_namespaces=(),
        populate_by_name=True, validate_assignment=False,
    )  # fmt: skip


def model(
    name: str, known: Mapping[str, object], validators: Mapping[str, Validator]
) -> type[BaseModel]:
    """A pydantic class of the contract. Every validator it lists must be there."""
    spec = CONTRACT["classes"][name]
    missing = set(spec.get("validators", ())) - set(validators)
    if missing:
        raise NotImplementedError(f"{name}: {sorted(missing)}")
    base = known.get(spec.get("base", ""), Strict)
    fields: dict[str, Any] = {k: _field(field, known) for k, field in spec["fields"].items()}
    checks = [validators[text] for text in spec.get("validators", ())]

    class Checked(base):  # type: ignore[misc, valid-type]
        def model_post_init(self, context: object, /) -> None:
            super().model_post_init(context)
            for check in checks:
                check(self)

    made: Any = pydantic.create_model(name, __base__=Checked, **fields)
    made.__module__ = spec["module"]
    return cast("type[BaseModel]", made)


def _field(spec: dict[str, Any], known: Mapping[str, object]) -> tuple[object, object]:
    kind = type_of(spec["type"], known)
    options: dict[str, Any] = {}
    if "gt" in spec:
        options["gt"] = spec["gt"]
    if "choices" in spec:
        kind = typing.Literal[tuple(spec["choices"])]
    aliases = [*spec.get("validation_alias", ()), *filter(None, [spec.get("alias")])]
    if aliases:
        options["validation_alias"] = AliasChoices(*aliases)
    if spec.get("init") is False:
        options["init"] = False
    if spec.get("required"):
        return kind, Field(**options)
    factory = spec.get("default_factory")
    if factory is not None:
        plain: dict[str, Any] = {"dict": dict, "list": list}
        made: Any = known.get(factory, plain.get(factory, lambda: None))
        typed = kind if factory in known or factory == "dict" else Any
        return typed, Field(default_factory=made, **options)
    # Defaults that only the C++ side knows stand for themselves.
    return kind, Field(default=spec.get("default", spec.get("default_expr")), **options)


def record(
    name: str, known: Mapping[str, object], post_init: Callable[[Any], None] | None = None
) -> type[Any]:
    """A dataclass of the contract. Unlike the package's it refuses values of wrong types."""
    spec = CONTRACT["classes"][name]
    adapters = {
        key: TypeAdapter(type_of(field["type"], known), config=ConfigDict(strict=True, arbitrary_types_allowed=True))
        for key, field in spec["fields"].items()
        if field.get("init", True)
    }  # fmt: skip

    def check(self: object) -> None:
        for key, adapter in adapters.items():
            try:
                adapter.validate_python(getattr(self, key))
            except pydantic.ValidationError as error:
                raise TypeError(f"{name}.{key}: {error}") from error
        if post_init is not None:
            post_init(self)

    fields: list[Any] = []
    for key, field in spec["fields"].items():
        options: dict[str, Any] = {"init": field.get("init", True)}
        if field.get("default_factory"):
            options["default_factory"] = {"list": list, "dict": dict}[field["default_factory"]]
        elif not field.get("required"):
            options["default"] = field.get("default")
        fields.append((key, Any, dataclasses.field(**options)))
    is_keyword_only = "kw_only=True" in spec["kind"]
    return dataclasses.make_dataclass(
        name, fields, namespace={"__post_init__": check, "__module__": spec["module"]},
        slots="slots=True" in spec["kind"], kw_only=is_keyword_only,
    )  # fmt: skip


def signature(method: str) -> inspect.Signature:
    """The signature of a method without ``self``."""
    parameters = []
    for spec in CONTRACT["methods"][method]["parameters"]:
        name = spec["name"]
        if name.startswith("**"):
            parameters.append(inspect.Parameter(name[2:], inspect.Parameter.VAR_KEYWORD))
            continue
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = spec.get("default", inspect.Parameter.empty)
        parameters.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(parameters)


def shape(home: type) -> None:
    """Give the methods of a class the contract's signatures.

    Each gets every argument by its name, with defaults filled in.
    """
    for name, spec in CONTRACT["methods"].items():
        owner, _, method = name.partition(".")
        if owner == home.__name__ and "parameters" in spec:
            setattr(home, method, _bound(getattr(home, method), signature(name)))


def _bound(function: Callable[..., Any], allowed: inspect.Signature) -> Callable[..., Any]:
    def call(self: object, *args: object, **kwargs: object) -> Any:
        given = allowed.bind(*args, **kwargs)
        given.apply_defaults()
        return function(self, **given.arguments)

    call.__doc__ = function.__doc__
    call.__signature__ = allowed  # type: ignore[attr-defined]
    return call
