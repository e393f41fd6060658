"""How two runs' options differ, one line per option, in the words of the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bitzoo.display import shortened

_IN_WORDS = {"base_lr": "lr", "mixup_alpha": "mixup"}
"""Name in a recipe -> name of the option; the others have the same."""
_EXPLANATIONS = {("recipe", "notes"), ("recipe", "overrides")}
"""What a recipe says about its numbers; nothing depends on it."""
_FOLLOW = {
    "steps": ("warmup", "boundaries", "decay"),
    "data": ("num_examples",),
}
"""Option -> what differs only because it does."""
_LONGEST = 100
_MOST = 20

_Path = tuple[str, ...]


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], changes: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """Return a line ``lr: 0.003 -> 0.001`` for each option that differs; none if none does.

    Args:
        before: What determines the result, as in `run.json`.
        now: The same of the options that are given now.
        changes: What was changed since, see `RunDir`; an option may also have its present value.
    """
    then, today = dict(_leaves(before)), dict(_leaves(json.loads(json.dumps(now))))
    missing = object()
    present = {change["key"]: change["new"] for change in changes}
    found = {
        path: (then.get(path, missing), today.get(path, missing))
        for path in {**then, **today}
        if then.get(path, missing) != today.get(path, missing)
    }
    names = {path: _name(path) for path in found}
    allowed = {name for path, name in names.items() if present.get(name, missing) == found[path][1]}
    explained = {
        part for name in names.values() if name in _FOLLOW for part in _FOLLOW[name]
    } | allowed
    lines = [
        f"{shortened(names[path], _LONGEST)}: {_between(names[path], *pair, missing)}"
        for path, pair in found.items()
        if names[path] not in explained
    ]
    if len(lines) > _MOST:
        lines[_MOST:] = [f"and {len(lines) - _MOST} more"]
    return lines


def _leaves(content: Mapping[str, Any], path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Yield the path and value of everything that is no filled mapping, without explanations."""
    for key, value in content.items():
        inner = (*path, str(key))
        if inner in _EXPLANATIONS:
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, inner)
        else:
            yield inner, value


def _name(path: _Path) -> str:
    if path[0] != "recipe" or len(path) == 1:
        return ".".join(path)
    name = path[-1] if path[1:-1] in ((), ("schedule",)) else ".".join(path[1:])
    return _IN_WORDS.get(name, name)


def _between(name: str, old: object, new: object, missing: object) -> str:
    if isinstance(old, list) and isinstance(new, list) and name == "classes":
        gone = [f"- {item}" for item in old if item not in new]
        come = [f"+ {item}" for item in new if item not in old]
        what = ", ".join([*gone, *come]) or "the same in another order"
        return shortened(f"{len(old)} -> {len(new)} ({what})", 2 * _LONGEST)
    shown = [
        "not there" if value is missing else shortened(_text(value), _LONGEST)
        for value in (old, new)
    ]
    if name == "data":
        shown = [text[:12] for text in shown]
        return " -> ".join(shown) + " (SHA-256 of images, labels and split)"
    return " -> ".join(shown)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
