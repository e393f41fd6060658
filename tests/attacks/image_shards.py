"""Shards of images under attack, against what Python's tarfile finds in them.

bitzoo walks the headers itself, a stretch at a time. Every record that it lists must be two members
that tarfile finds too: an image of these bytes, and a label that says this.
"""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attacks.checkpoints_under_attack import Attacked, Base
from attacks.engine import READ, wrong_words
from attacks.judges import Judge
from attacks.mutations import TEXTS, damage, damaged_json, dump_json, odd_number
from attacks.text import letters_of

from bitzoo.data.file_ranges import StoredImage
from bitzoo.data.problems import DatasetError
from bitzoo.data.source_names import TAR, SourceName
from bitzoo.data.tar_shards import read_shards

BLOCK = 512
LONG = "folder/" * 20
LABELS: dict[str, tuple[str, bytes]] = {
    "a/0": ("cls", b"cat"),
    "a/1": ("cls", b"cat; dog"),
    "b.c/2": ("json", b'{"label": 7, "source": "a test"}'),
    "3": ("json", b'{"labels": ["dog", "newt"]}'),
    f"{LONG}4": ("txt", b"the dog\n"),
    f"{LONG}5": ("cls", "dög".encode()),
    "6": ("txt", b"newt"),
}
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
FIELDS = {
    "name": (0, 100),
    "size": (124, 136),
    "sum": (148, 156),
    "type": (156, 157),
    "link": (157, 257),
    "magic": (257, 265),
    "prefix": (345, 500),
}
KINDS = b"0\x00123456789LKxgXVAD"
"""Not S: of some sparse files, tarfile gives up where GNU tar and bitzoo go on."""

Record = tuple[str, tuple[str, ...], bytes]
"""What is listed: name, labels, bytes of the image."""


def make_shard(form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for number, (key, (suffix, label)) in enumerate(LABELS.items()):
            image = b"image %d " % number * (1 + 40 * number)
            for name, content in ((f"{key}.png", image), (f"{key}.{suffix}", label)):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        archive.addfile(tarfile.TarInfo("notes.md"))
    return out.getvalue()


def _headers(data: bytes) -> list[int]:
    """Where headers are in an undamaged archive: what looks like one."""
    found = range(0, len(data) - BLOCK, BLOCK)
    return [at for at in found if data[at + 257 : at + 262] == b"ustar"]


def changed_header(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change a field of a header, under a right checksum."""
    content, names = bytearray(data), []
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.choice(_headers(data))
        block = bytearray(content[at : at + BLOCK])
        name = rng.choice([*FIELDS, "size", "size", "type", "name"])
        start, stop = FIELDS[name]
        block[start:stop] = _field(name, bytes(block[start:stop]), rng)
        if name != "sum":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
        content[at : at + BLOCK] = block
        names.append(name)
    return bytes(content), "+".join(names)


def _field(name: str, old: bytes, rng: random.Random) -> bytes:
    width = len(old)
    if name == "type":
        return bytes([rng.choice(KINDS)])
    if name == "size":
        number = odd_number(rng, rng.randrange(2_000))
        texts = (
            b"%0*o" % (width - 1, abs(number) % 8 ** (width - 1)),
            b"\x80" + (number % 2**88).to_bytes(width - 1, "big"),
            b"\xff" + (number % 2**88).to_bytes(width - 1, "big"),
            b"%d" % number,
            b" %o" % abs(number),
            b"",
            b"-1",
        )
        return rng.choice(texts)[:width].ljust(width, rng.choice((b"\0", b" ")))
    odd = rng.choice((*TEXTS, "6.png", "3.json", "a/0.cls", "./6.txt", "/", ".", ".png", "x" * 155))
    return odd.encode(errors="surrogatepass")[:width].ljust(width, b"\0")


def changed_label(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change what a member with a label says, within the blocks that it has."""
    content = bytearray(data)
    labels = [label for _, label in LABELS.values()]
    label = rng.choice(labels)
    at = content.index(label.ljust(BLOCK, b"\0"))
    kind = rng.random()
    if label.startswith(b"{") and kind < 0.7:
        changed, what = damaged_json(label, rng)
    elif kind < 0.9:
        changed, what = damage(label, rng)
    else:
        changed, what = dump_json({"label": rng.choice(TEXTS)}), "text"
    changed = changed[:BLOCK]
    content[at : at + BLOCK] = changed.ljust(BLOCK, b"\0")
    head = content[at - BLOCK : at]
    head[124:136] = b"%011o\0" % len(changed)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    content[at - BLOCK : at] = head
    return bytes(content), f"label {what}"


def changed_blocks(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Leave out, repeat or exchange whole blocks."""
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    at, other = rng.randrange(len(blocks)), rng.randrange(len(blocks))
    kind = rng.choice(("gone", "twice", "exchanged", "zeros", "end"))
    if kind == "gone":
        del blocks[at]
    elif kind == "twice":
        blocks.insert(other, blocks[at])
    elif kind == "exchanged":
        blocks[at], blocks[other] = blocks[other], blocks[at]
    elif kind == "zeros":
        blocks[at] = bytes(BLOCK)
    else:
        del blocks[at:]
    return b"".join(blocks), f"block {kind}"


def changed_pax(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Put another pax header, or a long name, before a member."""
    key = rng.choice((b"path", b"size", b"path", b"mtime", b"GNU.sparse.map", b"hdrcharset", b""))
    odd = (*TEXTS, "6.png", "a/0.cls", "5", "-1", "0x5", "99999999999999999999", "\u0665")
    value = rng.choice(odd).encode(errors="surrogatepass")
    body = b" %s=%s\n" % (key, value)
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    length = rng.choice((length, length, length, length + 1, length - 1, 0, 3, 10**8))
    body = b"%d" % length + body
    kind = rng.choice((b"x", b"x", b"g", b"L", b"K", b"X"))
    body = value + b"\0" if kind in (b"L", b"K") else body
    head = bytearray(tarfile.TarInfo("././@Long").tobuf(tarfile.GNU_FORMAT))
    head[124:136] = b"%011o\0" % len(body)
    head[156:157] = kind
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    padded = body.ljust(-(-len(body) // BLOCK) * BLOCK, b"\0")
    at = rng.choice(_headers(data))
    return data[:at] + bytes(head) + padded + data[at:], f"{kind!r} {key!r}"


CHANGES = (changed_header, changed_header, changed_label, changed_blocks, changed_pax)


@dataclass
class ImageShardsTarget:
    """Two shards, one of them damaged."""

    name: str = "images"
    judge: str = ""
    bases: dict[str, bytes] = field(default_factory=dict)

    def prepare(self, folder: Path, judge: Judge | None) -> None:
        self.bases = {name: make_shard(form) for name, form in FORMATS.items()}
        for name, data in self.bases.items():
            case = self._write(data, data, folder / name, name)
            rows, _ = ours = self.read(case)
            assert len(rows) == 2 * len(LABELS), (name, rows)
            assert self.differs(case, ours, judge) == (READ, ""), name

    def _write(self, first: bytes, second: bytes, place: Path, label: str) -> Attacked:
        path = place / "input-folder" / "part-0.tar"
        path.parent.mkdir(parents=True)
        path.write_bytes(first)
        (path.parent / "part-1.tar").write_bytes(second)
        return Attacked(path, label, Base(label, {}), place)

    def attack(self, rng: random.Random, place: Path) -> Attacked:
        name = rng.choice(list(self.bases))
        data = self.bases[name]
        if rng.random() < 0.4:
            heads = [(at, at + BLOCK) for at in _headers(data)]
            changed, what = damage(data, rng, heads, self.bases[rng.choice(list(self.bases))])
        else:
            changed, what = rng.choice(CHANGES)(data, rng)
        return self._write(changed, data, place, f"{name}: {what}")

    def read(self, case: Attacked) -> tuple[list[Record], Sequence[Any]]:
        """Index the shards, and again by the index; all images of the records."""
        os.environ["BITZOO_CACHE"] = str(case.place / "cache")
        found = []
        for _ in range(2):
            listing = read_shards(SourceName(TAR, str(case.path.parent)))
            rows = [
                (row.key, row.labels or (row.label,), row.load.content())
                for row in listing.rows
                if isinstance(row.load, StoredImage)
            ]
            assert len(rows) == len(listing.rows)
            found.append((rows, listing.problems))
        assert found[0] == found[1]
        rows, problems = found[0]
        if not any(key.startswith(case.path.name) for key, _, _ in rows):
            raise DatasetError(f"{case.path}: {'; '.join(map(str, problems[:3]))}")
        return rows, problems

    def differs(self, case: Attacked, ours: Any, judge: Judge | None) -> tuple[str, str]:
        rows, problems = ours
        for problem in problems:
            words = DatasetError("")
            words.args = (f"{problem.subject} {problem.reason.title} {problem.detail}",)
            if fault := wrong_words(words, case.path):
                return "message", fault
        whole = sum(key.startswith("part-1.tar") for key, _, _ in rows)
        if whole != len(LABELS):
            return "different", f"{whole} records of the undamaged shard"
        theirs = read_members(case.path)
        for key, labels, content in rows:
            if key.startswith("part-1.tar"):
                continue
            name = letters_of(key.removeprefix("part-0.tar/"))
            mine = [(suffix, data) for stem, suffix, data in theirs if stem == name]
            if not any(data == content for _, data in mine):
                return "different", f"{key}: tarfile has no such image"
            if not any(letters_of(labels) in _said(s, data) for s, data in mine):
                return "different", f"{key}: tarfile has no label {labels!r:.80}"
        return READ, ""


def read_members(path: Path) -> list[tuple[str, str, bytes]]:
    """Stem, suffix and content of every file that tarfile finds, up to where it gives up."""
    found, data = [], path.read_bytes()
    with tarfile.open(path, "r:") as archive:
        try:
            for entry in archive:
                if not entry.isreg() or entry.size > len(data):
                    continue
                file = archive.extractfile(entry)
                folder, slash, name = _name_of(entry, data).rpartition("/")
                stem, _, suffix = name.partition(".")
                content = file.read() if file else b""
                found.append((letters_of(folder + slash + stem), suffix.lower(), content))
        except (tarfile.TarError, ValueError, OverflowError, EOFError, MemoryError):
            pass  # what came before counts
    return found


def _name_of(entry: tarfile.TarInfo, data: bytes) -> str:
    """The name; where GNU tar keeps times, tarfile takes them for the name of a folder."""
    head = data[entry.offset_data - BLOCK : entry.offset_data]
    prefix = head[345:500].split(b"\0")[0].decode("utf-8", "surrogateescape")
    own = entry.name.removeprefix(f"{prefix}/")
    return own if head[257:263] != b"ustar\0" else entry.name


def _said(suffix: str, data: bytes) -> list[str]:
    """What a member may say: its labels, as letters."""
    text = data.decode("utf-8-sig", errors="replace")
    if suffix == "cls":
        return [letters_of(dict.fromkeys(each.strip() for each in text.split(";")))]
    if suffix == "txt":
        return [letters_of(text.strip())]
    try:
        record = json.loads(text)
        value = record.get("labels", record.get("label"))
    except (ValueError, AttributeError, RecursionError):
        return []
    items = value if isinstance(value, list) else [value]
    return [letters_of(dict.fromkeys(str(item).strip() for item in items))]


IMAGES = ImageShardsTarget()
