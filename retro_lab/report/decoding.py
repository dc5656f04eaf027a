"""JSON values into typed dataclasses, with an error that names the field that does not fit."""

import dataclasses
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def decode(kind: Any, value: Any, where: str) -> Any:
    """Turn `value`, as `json.loads` returns it, into an instance of the type `kind`.

    Fields that `kind` does not know are ignored, so that records of a later release can still be read.

    Args:
        kind: A dataclass, `tuple[X, ...]`, `dict[str, X]`, `X | None`, `str`, `int` or `float`.
        value: The JSON value.
        where: Name of the value in error messages, such as `evaluations[0].bytes`.

    Raises:
        ValueError: The value, or one inside it, is missing or of another type.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not NoneType)
        return decode(inner, value, where)
    if origin is tuple:
        _expect(isinstance(value, list), "a list", value, where)
        return tuple(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), "an object", value, where)
        return {key: decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return _decode_scalar(kind, value, where)


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), "an object", value, where)
    types = get_type_hints(kind)
    prefix = f"{where}." if where else ""
    arguments = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            arguments[field.name] = decode(types[field.name], value[field.name], prefix + field.name)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{field.name} is missing")
    return kind(**arguments)


def _decode_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is str:
        _expect(isinstance(value, str), "text", value, where)
        return value
    # JSON's true is an int to Python, and 1e6 tokens arrive as a float.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float:
        _expect(number, "a number", value, where)
        return float(value)
    if kind is int:
        _expect(number and value == value // 1, "a whole number", value, where)
        return int(value)
    raise TypeError(f"{where}: records cannot hold {kind}")


def _expect(fits: bool, expected: str, value: Any, where: str) -> None:
    if not fits:
        raise ValueError(f"{where or 'the record'} should be {expected} but is {value!r:.60}")
