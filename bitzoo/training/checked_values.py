"""Checked values of recipes and schedules, with errors for people; neither torch nor NumPy."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any

from bitzoo.errors import UsageError


def whole(subject: str, value: object, least: int) -> int:
    """Return `value` as an int.

    Raises:
        UsageError: If it is not a whole number of at least `least`; names the `subject`.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise UsageError(
        f"{subject} must be a whole number of at least {least}, found {value!r}. Give such a "
        "number, or leave it out to use the rule's."
    )


def number(
    subject: str, value: object, *, least: float = -math.inf, above: float = -math.inf
) -> float:
    """Return `value` as a finite float, at least `least` and more than `above`.

    Raises:
        UsageError: If it is not such a number; names the `subject`.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        found = float(value)
        if math.isfinite(found) and found >= least and found > above:
            return found
    bound = f"above {above:g}" if above > -math.inf else f"of at least {least:g}"
    raise UsageError(
        f"{subject} must be a number {bound}, found {value!r}. Give such a number, or leave it out "
        "to use the rule's."
    )


def expect(subject: str, value: object, kind: type | UnionType, called: str) -> None:
    """Refuse a value of another type.

    Raises:
        UsageError: Names the `subject`, and says what it should be `called`.
    """
    if not isinstance(value, kind):
        raise UsageError(f"{subject} of a recipe must be {called}, found {value!r}. Correct it.")


def in_proportion(value: int, new: int, old: int) -> int:
    """Round ``value * new / old`` to the nearest whole number, halves up; exact, unlike floats."""
    return (2 * value * new + old) // (2 * old)


def entries_of(record: object, kind: type, subject: str) -> dict[str, Any]:
    """Return the mapping `record` as arguments for the dataclass `kind`.

    Raises:
        UsageError: If it is no mapping, or its entries are not those of `kind`.
    """
    if not isinstance(record, Mapping):
        raise UsageError(
            f"{subject} must be a mapping, found {record!r}. Pass the output of `to_dict`."
        )
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    diff = [f"+ {name}" for name in record if name not in known]
    diff += [f"- {name}" for name, required in known.items() if required and name not in record]
    if diff:
        raise UsageError(
            f"{subject} has unknown (+) or missing (-) entries: {', '.join(sorted(diff))}. "
            "It may come from another version of bitzoo; create it again."
        )
    return dict(record)


def store(frozen: object, **values: object) -> None:
    """Store checked values in a frozen dataclass, which allows no plain assignment."""
    for name, value in values.items():
        object.__setattr__(frozen, name, value)
