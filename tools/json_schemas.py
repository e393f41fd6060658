"""docs/reference/json.yml as JSON Schemas, and what its words for types mean.

`schema("evaluate")` is that of what `bitzoo evaluate --json` prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

SOURCE = Path(__file__).parent.parent / "docs/reference/json.yml"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
WORDS: dict[str, tuple[dict[str, Any], str]] = {
    "any": ({}, "any JSON"),
    "text": ({"type": "string"}, "a string"),
    "boolean": ({"type": "boolean"}, "`true` or `false`"),
    "null": ({"type": "null"}, "`null`"),
    "integer": ({"type": "integer"}, "a whole number"),
    "count": ({"type": "integer", "minimum": 0}, "a whole number, 0 or more"),
    "number": ({"type": "number"}, "a number"),
    "share": ({"type": "number", "minimum": 0, "maximum": 1}, "a number from 0 to 1"),
    "percent": ({"type": "number", "minimum": 0, "maximum": 100}, "a number from 0 to 100"),
    "scalar": (
        {"type": ["string", "number", "boolean", "null"]},
        "a string, a number, `true`, `false` or `null`",
    ),
    "sha256": ({"type": "string", "pattern": "^[0-9a-f]{64}$"}, "64 hexadecimal digits"),
    "interval": (
        {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "maximum": 1},
            "minItems": 2,
            "maxItems": 2,
        },
        "a list of two numbers from 0 to 1, the lower first",
    ),
}
"""Word for a type -> its schema, and what it is."""
_NAME = re.compile(r"[A-Z]\w*")


@cache
def source() -> dict[str, Any]:
    """Return the file's content: `documents` and `types`."""
    found: dict[str, Any] = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    return found


def keys_of(name: str) -> dict[str, tuple[str, str, bool]]:
    """Return a type's keys, those of the type that it is like first: type, meaning, if optional."""
    entry = source()["types"][name]
    keys = dict(keys_of(entry["like"])) if "like" in entry else {}
    for key, (kind, meaning) in entry["keys"].items():
        keys[key.removesuffix("?")] = (kind, meaning, key.endswith("?"))
    return keys


def schema(document: str, *, closed: bool = False) -> dict[str, Any]:
    """Return the JSON Schema of a document.

    Args:
        document: Its name, a key of `documents`.
        closed: Whether keys that are not described are refused.
    """
    entry = source()["documents"][document]
    names = sorted(_needed(entry["is"]))
    return {
        "$schema": DIALECT,
        "title": entry["title"],
        **compiled(entry["is"]),
        "$defs": {name: _object(name, closed) for name in names},
    }


def compiled(kind: str) -> dict[str, Any]:
    """Return the schema of a type as the file writes it."""
    parts = [_one(part.strip()) for part in kind.split(" or ")]
    if len(parts) == 1:
        return parts[0]
    if all("const" in part for part in parts):
        return {"enum": [part["const"] for part in parts]}
    return {"anyOf": parts}


def _one(kind: str) -> dict[str, Any]:
    if kind.startswith('"'):
        return {"const": kind.strip('"')}
    for prefix, outer in (("list of ", "items"), ("map of ", "additionalProperties")):
        if kind.startswith(prefix):
            inner = compiled(kind.removeprefix(prefix))
            return {"type": "array" if outer == "items" else "object", outer: inner}
    if _NAME.fullmatch(kind):
        return {"$ref": f"#/$defs/{kind}"}
    return dict(WORDS[kind][0])


def _object(name: str, closed: bool) -> dict[str, Any]:
    keys = keys_of(name)
    made: dict[str, Any] = {
        "type": "object",
        "properties": {
            key: compiled(kind) | ({"description": meaning} if meaning else {})
            for key, (kind, meaning, _) in keys.items()
        },
        "required": [key for key, (_, _, optional) in keys.items() if not optional],
    }
    return made | ({"additionalProperties": False} if closed else {})


def _needed(kind: str) -> set[str]:
    """Return the names of all types that a type is made of."""
    found: set[str] = set()
    waiting = list(_NAME.findall(re.sub(r'"[^"]*"', "", kind)))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [part for kind, _, _ in keys_of(name).values() for part in names_in(kind)]
    return found


def names_in(kind: str) -> list[str]:
    """Return the names of the types in a type as the file writes it."""
    return _NAME.findall(re.sub(r'"[^"]*"', "", kind))


def used(document: str, content: object) -> Iterator[tuple[str, str]]:
    """Yield each described key that a document has, as the type's name and the key."""
    yield from _used(source()["documents"][document]["is"], content)


def _used(kind: str, content: object) -> Iterator[tuple[str, str]]:
    for part in map(str.strip, kind.split(" or ")):
        if part.startswith("list of ") and isinstance(content, list):
            for item in content:
                yield from _used(part.removeprefix("list of "), item)
        elif part.startswith("map of ") and isinstance(content, dict):
            for item in content.values():
                yield from _used(part.removeprefix("map of "), item)
        elif _NAME.fullmatch(part) and isinstance(content, dict):
            for key, (inner, _, _) in keys_of(part).items():
                if key in content:
                    yield part, key
                    yield from _used(inner, content[key])
