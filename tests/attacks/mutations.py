"""Damage to bytes, to JSON and to zip archives, all of it decided by a generator of numbers."""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Ranges = Sequence[tuple[int, int]]
ODD = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HUGE = (1 << 31, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def odd_number(rng: random.Random, near: int = 0) -> int:
    """A number at the edge of something: of a byte, of a word, or of what was there before."""
    close = (near - 1, near + 1, near * 2, near // 2, near + 4, near * 1000, -near)
    return rng.choice(rng.choice((ODD, HUGE, close)))


# --- bytes --------------------------------------------------------------------------------------


def damage(
    data: bytes, rng: random.Random, hot: Ranges = (), other: bytes = b""
) -> tuple[bytes, str]:
    """Return `data` with one to four changes, and their names.

    Args:
        data: The bytes.
        rng: Decides.
        hot: Where most changes are to be: what is not plain numbers.
        other: Another valid file, to splice with.
    """
    if not data:
        return b"\0", "insert"
    content, names = bytearray(data), []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        kind = rng.choice(tuple(_DAMAGES))
        if kind == "splice" and not other:
            kind = "flip"
        _DAMAGES[kind](content, rng, _place(len(content), rng, hot), other)
        names.append(kind)
        if not content:
            break
    return bytes(content), "+".join(names)


def _place(size: int, rng: random.Random, hot: Ranges) -> int:
    if hot and rng.random() < 0.8:
        start, stop = rng.choice(hot)
        return min(max(size - 1, 0), rng.randrange(start, max(stop, start + 1)))
    return rng.randrange(max(size, 1))


def _flip(content: bytearray, rng: random.Random, at: int, other: bytes) -> None:
    content[at] ^= 1 << rng.randrange(8)


def _set(content: bytearray, rng: random.Random, at: int, other: bytes) -> None:
    size = rng.choice((1, 1, 2, 4, 8))
    content[at : at + size] = rng.choice((b"\0", b"\xff", b"\x80", b"\x7f", b"\x01")) * size


def _number(content: bytearray, rng: random.Random, at: int, other: bytes) -> None:
    code = rng.choice(["<B", "<H", "<I", "<Q", ">H", ">I", ">Q"])
    size = struct.calcsize(code)
    old = int.from_bytes(content[at : at + size], "little" if code[0] == "<" else "big")
    new = odd_number(rng, old) % (1 << 8 * size)
    content[at : at + size] = struct.pack(code, new)


def _insert(content: bytearray, rng: random.Random, at: int, other: bytes) -> None:
    content[at:at] = rng.randbytes(rng.choice((1, 2, 3, 4, 8, 16, 64)))


def _delete(content: bytearray, rng: random.Random, at: int, other: bytes) -> None:
    del content[at : at + rng.choice((1, 2, 4, 8, 64, 512))]


def _truncate(content: bytearray, rng: random.Random, at: int, other: bytes) -> None:
    del content[at:]


def _swap(content: bytearray, rng: random.Random, at: int, other: bytes) -> None:
    size = min(rng.choice((1, 4, 16, 64, 512)), len(content) // 2)
    there = rng.randrange(max(1, len(content) - size))
    at = min(at, len(content) - size)
    one, two = content[at : at + size], content[there : there + size]
    content[at : at + size], content[there : there + size] = two, one


def _repeat(content: bytearray, rng: random.Random, at: int, other: bytes) -> None:
    piece = content[at : at + rng.choice((1, 4, 16, 64, 512))]
    content[at:at] = piece * rng.choice((1, 2, 16))


def _copy(content: bytearray, rng: random.Random, at: int, other: bytes) -> None:
    size, start = rng.choice((2, 4, 8, 16, 64)), rng.randrange(len(content))
    piece = content[start : start + size]
    content[at : at + len(piece)] = piece


def _splice(content: bytearray, rng: random.Random, at: int, other: bytes) -> None:
    cut = min(at, len(other))
    if rng.random() < 0.5:
        content[cut:] = other[cut:]
    else:
        size = rng.choice((16, 256, 4096))
        content[cut : cut + size] = other[cut : cut + size]


_DAMAGES = {
    "flip": _flip,
    "set": _set,
    "number": _number,
    "insert": _insert,
    "delete": _delete,
    "truncate": _truncate,
    "swap": _swap,
    "repeat": _repeat,
    "copy": _copy,
    "splice": _splice,
}


# --- JSON ---------------------------------------------------------------------------------------

TEXTS = (
    "",
    " ",
    "x" * 5_000,
    "\x1b[2J\x1b[31mred",
    "\u202egnp.exe",
    "a\nb\rc",
    "\ud800",
    "\0",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "1e999",
    "9" * 5_000,
    "True",
    "ünïcödé \U0001f600",
)
"""Texts that somebody writes where a name is expected."""


class Raw:
    """Text that stands in JSON as it is, such as a number that no float can hold."""

    def __init__(self, text: str) -> None:
        self.text = text


def odd_value(rng: random.Random, old: object = None) -> Any:
    """A JSON value of another kind or size than `old`."""
    near = old if isinstance(old, int) and not isinstance(old, bool) else 0
    kind = rng.randrange(10)
    if kind < 3:
        return odd_number(rng, near)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice(
            (None, True, False, [], {}, [[]], {"": None}, 0.5, -1.5, 1e308, str(old)[:99])
        )
    if kind == 6:
        raw = ("1e999", "NaN", "-Infinity", "9" * 5_000, "-0", "[" * 3_000 + "]" * 3_000, "1" * 400)
        return Raw(rng.choice(raw))
    if kind == 7:
        return [copy.deepcopy(old)] * rng.choice((1, 2, 1_000))
    if kind == 8:
        return {str(i): copy.deepcopy(old) for i in range(rng.choice((1, 3, 300)))}
    return {"value": old}


def change_json(value: Any, rng: random.Random, times: int = 0) -> tuple[Any, str]:
    """Return a copy with values of other kinds, missing or renamed keys; and what was done."""
    root, names = [copy.deepcopy(value)], []
    for _ in range(times or rng.choice((1, 1, 2, 3))):
        parent, key = _node(root, rng)
        kind = rng.choice(("value", "value", "value", "remove", "rename", "swap", "again"))
        names.append(f"{kind} {str(key)[:40]}")
        if kind == "remove" and isinstance(parent, dict):
            del parent[key]
        elif kind == "rename" and isinstance(parent, dict):
            parent[rng.choice((*TEXTS, str(key) + " ", str(key).upper()))] = parent.pop(key)
        elif kind == "again" and isinstance(parent, list) and parent is not root:
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
        elif kind == "swap":
            there, other = _node(root, rng)
            parent[key], there[other] = copy.deepcopy(there[other]), copy.deepcopy(parent[key])
        else:
            parent[key] = odd_value(rng, parent[key])
    return root[0], ", ".join(names)


def _node(root: list[Any], rng: random.Random) -> tuple[Any, Any]:
    """A random place: a container and a key or index in it; never the outermost if it can be."""
    parent: Any = root
    key: Any = 0
    while True:
        value = parent[key]
        inside = (
            list(value)
            if isinstance(value, dict)
            else range(len(value))
            if isinstance(value, list)
            else ()
        )
        if not inside or (parent is not root and rng.random() < 0.35):
            return parent, key
        parent, key = value, rng.choice(inside)


def dump_json(value: Any) -> bytes:
    """Write JSON as it stands, with `Raw` text, NaN and lone surrogates."""
    if isinstance(value, Raw):
        return value.text.encode()
    if isinstance(value, dict):
        inside = (json.dumps(str(k)).encode() + b":" + dump_json(v) for k, v in value.items())
        return b"{" + b",".join(inside) + b"}"
    if isinstance(value, (list, tuple)):
        return b"[" + b",".join(map(dump_json, value)) + b"]"
    return json.dumps(value).encode()


def damaged_json(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return a JSON text with changed values, or changed bytes, or a key that stands twice."""
    kind = rng.random()
    if kind < 0.25:
        changed, what = damage(data, rng)
        return changed, what
    value, what = change_json(json.loads(data), rng)
    text = dump_json(value)
    if kind > 0.9 and text.startswith(b"{") and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        again = json.dumps(str(key)).encode() + b":" + dump_json(odd_value(rng, value[key]))
        text, what = text[:-1] + b"," + again + b"}", what + ", twice"
    return text, what


# --- zip ----------------------------------------------------------------------------------------

Fields: TypeAlias = "tuple[tuple[str, str], ...]"
_LOCAL: Fields = (("version", "H"), ("flags", "H"), ("method", "H"), ("time", "I"), ("crc", "I"))
_LOCAL = (*_LOCAL, ("packed", "I"), ("size", "I"), ("names", "H"), ("extras", "H"))
_CENTRAL: Fields = (("made", "H"), *_LOCAL, ("comments", "H"), ("disk", "H"), ("inner", "H"))
_CENTRAL = (*_CENTRAL, ("outer", "I"), ("offset", "I"))
_END: Fields = (("disk", "H"), ("start_disk", "H"), ("here", "H"), ("all", "H"))
_END = (*_END, ("bytes", "I"), ("offset", "I"), ("comments", "H"))
_MOST = {"H": 0xFFFF, "I": 0xFFFFFFFF}


@dataclass
class Member:
    """A member of an archive, and what its two headers say that is not so."""

    name: bytes
    data: bytes
    method: int = 0
    local: dict[str, int] = field(default_factory=dict)
    central: dict[str, int] = field(default_factory=dict)
    local_name: bytes | None = None
    extra: bytes = b""
    zip64: bool = False
    padding: int = 1
    """Data begins at a multiple of it, as PyTorch pads."""


def write_zip(
    members: Sequence[Member], end: dict[str, int] | None = None, tail: bytes = b""
) -> bytes:
    """Return an archive; whatever its headers say, all positions are right unless changed."""
    out, directory = bytearray(), bytearray()
    for member in members:
        data = member.data
        if member.method == 8:
            packer = zlib.compressobj(1, zlib.DEFLATED, -15)
            data = packer.compress(member.data) + packer.flush()
        offset = len(out)
        facts = {"version": 20, "made": 20, "flags": 0, "method": member.method, "time": 0x21}
        facts |= {"crc": zlib.crc32(member.data), "packed": len(data), "size": len(member.data)}
        name = member.name if member.local_name is None else member.local_name
        extra = member.extra
        if member.zip64:
            extra += struct.pack("<HHQQ", 1, 16, len(member.data), len(data))
        lack = -(offset + 30 + len(name) + len(extra)) % member.padding
        if lack:
            lack += member.padding if lack < 4 else 0
            extra += struct.pack("<HH", 0x4246, lack - 4) + b"Z" * (lack - 4)
        here = facts | {"names": len(name), "extras": len(extra)}
        if member.zip64:
            here |= {"version": 45, "packed": 0xFFFFFFFF, "size": 0xFFFFFFFF}
        out += b"PK\3\4" + _pack(_LOCAL, here | member.local) + name + extra + data
        there = facts | {"names": len(member.name), "extras": 0, "offset": offset}
        directory += b"PK\1\2" + _pack(_CENTRAL, there | member.central) + member.name
    facts = {"here": len(members), "all": len(members), "bytes": len(directory), "offset": len(out)}
    return bytes(out + directory + b"PK\5\6" + _pack(_END, facts | (end or {})) + tail)


def _pack(fields: Sequence[tuple[str, str]], values: dict[str, int]) -> bytes:
    return b"".join(
        struct.pack(f"<{code}", values.get(name, 0) & _MOST[code]) for name, code in fields
    )


def change_zip(members: list[Member], rng: random.Random) -> tuple[bytes, str]:
    """Return an archive whose headers disagree with its content or with each other."""
    members = [copy.copy(member) for member in members]
    for member in members:
        member.local, member.central = dict(member.local), dict(member.central)
    end: dict[str, int] = {}
    names, tail = [], b""
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.choice(("local", "central", "both", "both", "end", "member", "method"))
        member = rng.choice(members)
        if kind in ("local", "central", "both"):
            fields = _LOCAL if kind != "central" else _CENTRAL
            name, code = rng.choice(fields)
            near = {"packed": len(member.data), "size": len(member.data)}.get(name, 0)
            value = odd_number(rng, near) & _MOST[code]
            if kind != "central":
                member.local[name] = value
            if kind != "local":
                member.central[name] = value
            kind += f" {name}"
        elif kind == "end":
            name, code = rng.choice(_END)
            end[name] = odd_number(rng, len(members)) & _MOST[code]
            tail = rng.choice((b"", b"", b"PK\5\6", b"\0" * 30))
            kind += f" {name}"
        elif kind == "method":
            member.method = 8 if member.method == 0 else 0
        else:
            kind = _change_member(members, member, rng)
        names.append(kind)
    return write_zip(members, end, tail), ", ".join(names)


def _change_member(  # noqa: C901 - one case per kind of damage
    members: list[Member], member: Member, rng: random.Random
) -> str:
    """Change which members there are, under right checksums."""
    kind = rng.choice(
        (
            "twice",
            "gone",
            "renamed",
            "other name",
            "exchanged",
            "shorter",
            "longer",
            "extra",
            "order",
            "zip64",
            "zeros",
        )
    )
    at = members.index(member)
    other = rng.choice(members)
    if kind == "twice":
        members.insert(rng.randrange(len(members) + 1), copy.copy(member))
    elif kind == "gone":
        del members[at]
        if not members:
            members.append(member)
    elif kind == "renamed":
        odd = rng.choice(TEXTS).encode(errors="surrogatepass")[:300]
        member.name = rng.choice((other.name, odd, member.name + b"x", b"/" + member.name))
    elif kind == "other name":
        member.local_name = rng.choice((other.name, b"", b"x" * len(member.name), member.name[:-1]))
    elif kind == "exchanged":
        member.data, other.data = other.data, member.data
    elif kind == "shorter":
        member.data = member.data[: -rng.choice((1, 4, 64)) or None]
    elif kind == "longer":
        member.data += rng.randbytes(rng.choice((1, 4, 64)))
    elif kind == "extra":
        member.extra = rng.choice((rng.randbytes(9), struct.pack("<HH", 1, 0xFFFF), b"\1\0\x10\0"))
    elif kind == "order":
        rng.shuffle(members)
    elif kind == "zip64":
        member.zip64 = True
    else:
        member.data = bytes(len(member.data))
    return kind
