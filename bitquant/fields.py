"""Types and bounds of values in JSON objects that nobody vouches for; each problem is one short sentence."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

LARGEST = 2**31 - 1
LONGEST = 1000  # characters of a name

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 100


class Field(NamedTuple):
    """What a value must be, in words, and whether one is."""

    wanted: str
    fits: Callable[[Any], bool]


def whole(low: int = 0, high: int = LARGEST) -> Field:
    return Field(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def number(low: float, high: float) -> Field:
    """Finite where the bounds are: NaN is within none."""
    return Field(f"a number from {low} to {high}", lambda v: type(v) in (int, float) and low <= v <= high)


def one_of(*values: Any) -> Field:
    """One of these, of its very type: 1 is not True."""
    wanted = f"one of {', '.join(map(repr, values))}"
    return Field(wanted, lambda v: any(type(v) is type(known) and v == known for known in values))


def optional(field: Field) -> Field:
    return Field(f"null or {field.wanted}", lambda v: v is None or field.fits(v))


def list_of(field: Field, least: int = 0, most: int = LARGEST) -> Field:
    return Field(
        f"a list in which each is {field.wanted}",
        lambda v: isinstance(v, list) and least <= len(v) <= most and all(map(field.fits, v)),
    )


def object_of(field: Field) -> Field:
    return Field(
        f"an object in which each is {field.wanted}",
        lambda v: isinstance(v, dict) and all(map(name.fits, v)) and all(map(field.fits, v.values())),
    )


flag = Field("true or false", lambda v: type(v) is bool)
name = Field("a text of up to 1000 characters", lambda v: isinstance(v, str) and len(v) <= LONGEST)
anything = Field("an object", lambda v: isinstance(v, dict))


def check_object(value: Any, fields: Mapping[str, Field], place: str, *, optional: frozenset[str] = frozenset()):
    """ValueError unless ``value`` is a dict of exactly these fields; ``optional`` ones may be missing."""
    if not isinstance(value, dict):
        raise ValueError(f"{place} must be a JSON object, not {shown(value)}")
    for key in value:
        if key not in fields:
            raise ValueError(f"{place} has an unknown field {shown(key)}")
    for key, field in fields.items():
        if key in value:
            if not field.fits(value[key]):
                raise ValueError(f"{key} of {place} must be {field.wanted}, not {shown(value[key])}")
        elif key not in optional:
            raise ValueError(f"{place} has no field {key!r}")


def shown(value: Any) -> str:
    """Something from a file as part of a sentence: on one line, and not longer than one reads."""
    return _repr.repr(value)


def first_line(error: BaseException, longest: int = 300) -> str:
    """What another library says of an error, as part of a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:longest]
