"""TensorFlow checkpoints under attack; the independent reader is TensorFlow."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from attacks import tensor_bundles as bundles
from attacks.checkpoints_under_attack import WHOLE, Base, CheckpointTarget
from attacks.mutations import TEXTS, damage, odd_number
from checkpoints import write_npz

_ENTRIES = {
    "tf1": "bit.ckpt",
    "shards": "bit.ckpt",
    "bfloat16": "bit.ckpt",
    "objects": "bit.ckpt",
    "paths": "bit.ckpt",
    "saved": "",
    "whole": "bit.ckpt",
}


def make_bases(folder: Path) -> list[Base]:
    """What TensorFlow wrote, in a process of its own."""
    write_npz(folder / "whole.npz", WHOLE)
    script = Path(__file__).with_name("tensorflow_bases.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "whole.npz"), str(folder / "made")],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    bases = []
    for name, entry in _ENTRIES.items():
        root = folder / "made" / name
        files = {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }
        index = next(file for file in files if file.endswith(".index"))
        files = {index: files[index]} | files  # first, for it is damaged most
        hot = {file: [(0, 8)] for file in files if ".data" in file}
        bases.append(
            Base(name, files, entry, name == "whole", hot, bundles.read_table(files[index]))
        )
        assert bundles.read_table(bundles.write_table(bases[-1].make)) == bases[-1].make
    return bases


def prefix_of(path: Path) -> Path:
    """What TensorFlow calls the checkpoint at a path; it does not know the hubs' shard names."""
    prefix = path / "variables" / "variables" if path.is_dir() else path
    shard = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
    if (hub := prefix.with_name(f"{prefix.name}.data@1")).exists() and not shard.exists():
        shard.symlink_to(hub)
    return prefix


def structured(base: Base, rng: random.Random, place: Path) -> tuple[Path, str]:
    """Change entries, keys, shards or objects under right checksums."""
    index = next(iter(base.files))
    pairs = [(key, value) for key, value in base.make]
    changed: dict[str, bytes] = {}
    kind = rng.choice(
        (
            "entry",
            "entry",
            "entry",
            "header",
            "keys",
            "numbers",
            "objects",
            "blocks",
            "footer",
            "files",
        )
    )
    per_block, label = rng.choice((16, 16, 1, 3)), kind
    if kind == "entry":
        at = rng.randrange(1, len(pairs))
        value, what = _changed_entry(pairs[at][1], rng, [value for _, value in pairs[1:]])
        pairs[at] = (pairs[at][0], value)
        label = f"entry {pairs[at][0].decode(errors='replace')[-30:]} {what}"
    elif kind == "header":
        pairs[0] = (b"", _changed_fields(pairs[0][1], rng))
    elif kind == "keys":
        label = _change_keys(pairs, rng)
    elif kind == "numbers":
        label = _change_numbers(base, pairs, changed, rng)
    elif kind == "objects":
        label = _change_objects(base, pairs, changed, rng)
    elif kind == "files":
        return _other_files(base, rng, place)
    table = bundles.write_table(pairs, per_block)
    if kind == "blocks":
        table = _damaged_blocks(pairs, rng)
    elif kind == "footer":
        foot, what = damage(table[-48:], rng)
        table, label = table[:-48] + foot, f"footer {what}"
    return base.write(place, changed | {index: table}), label


def _changed_entry(value: bytes, rng: random.Random, others: list[bytes]) -> tuple[bytes, str]:
    """Another dtype, shape, shard, offset, size or checksum."""
    fields = bundles.read_fields(value)
    kind = rng.choice(("field", "field", "field", "shape", "more", "other", "gone", "bytes"))
    if kind == "other":
        return rng.choice(others), kind
    if kind == "bytes":
        return damage(value, rng)[0], kind
    at = rng.randrange(len(fields))
    number, wire, old = fields[at]
    if kind == "gone":
        del fields[at]
    elif kind == "more":
        more: list[Any] = [
            (7, 2, b""),
            (3, 0, 1),
            (1, 0, 7),
            (4, 0, 1 << 40),
            (5, 0, (1 << 64) - 4),
        ]
        more += [(2, 2, b"\x12\x00"), (99, 2, b"x" * 99), (7, 2, b"\x0a\x04\x08\x00\x10\x10")]
        fields.append(rng.choice(more))
    elif isinstance(old, int):
        numbers = (0, 1, 2, 3, 7, 9, 14, 19, 23, 43) if number == 1 else ()
        new = rng.choice((*numbers, odd_number(rng, old), odd_number(rng, old))) % (1 << 64)
        fields[at] = (number, wire, new)
    else:
        fields[at] = (number, wire, _changed_shape(old, rng))
    return bundles.write_fields(fields), f"{kind} {number}"


def _changed_shape(value: bytes, rng: random.Random) -> bytes:
    sizes = [fields for number, _, fields in bundles.read_fields(value) if number == 2]
    kind = rng.choice(("size", "size", "order", "more", "fewer", "unknown"))
    if kind == "order":
        rng.shuffle(sizes)
    elif kind == "more":
        sizes += [b"\x08\x01"] * rng.choice((1, 1, 40, 300))
    elif kind == "fewer":
        sizes = sizes[1:]
    elif kind == "size" and sizes:
        new = odd_number(rng, 32) % (1 << 64)
        sizes[rng.randrange(len(sizes))] = b"\x08" + bundles.varint(new)
    fields: list[Any] = [(2, 2, size) for size in sizes]
    return bundles.write_fields(fields + ([(3, 0, 1)] if kind == "unknown" else []))


def _changed_fields(value: bytes, rng: random.Random) -> bytes:
    fields = bundles.read_fields(value)
    fields += [(2, 0, 1)] if rng.random() < 0.3 else []
    at = rng.randrange(len(fields))
    number, wire, old = fields[at]
    if isinstance(old, bytes):
        fields[at] = (number, wire, damage(old, rng)[0])
    else:
        fields[at] = (number, wire, odd_number(rng, old) % (1 << 64))
    return bundles.write_fields(fields)


def _change_keys(pairs: list[tuple[bytes, bytes]], rng: random.Random) -> str:
    kind = rng.choice(("order", "twice", "gone", "renamed", "exchanged", "many", "no header"))
    at, other = rng.randrange(1, len(pairs)), rng.randrange(1, len(pairs))
    if kind == "order":
        rng.shuffle(pairs)
    elif kind == "twice":
        pairs.insert(at, pairs[other] if rng.random() < 0.5 else (pairs[at][0], pairs[other][1]))
    elif kind == "gone":
        del pairs[at]
    elif kind == "renamed":
        name = rng.choice((*TEXTS, "OptimizeLoss/x", "_CHECKPOINTABLE_OBJECT_GRAPH"))
        pairs[at] = (name.encode(errors="surrogatepass"), pairs[at][1])
        pairs[1:] = sorted(pairs[1:])
    elif kind == "exchanged":
        (one, a), (two, b) = pairs[at], pairs[other]
        pairs[at], pairs[other] = (one, b), (two, a)
    elif kind == "many":
        pairs += [(b"zz/%06d" % i, pairs[at][1]) for i in range(2_000)]
    else:
        del pairs[0]
    return f"keys {kind}"


def _shard(base: Base) -> str:
    return next(name for name in base.files if ".data" in name)


def _change_numbers(
    base: Base, pairs: list[tuple[bytes, bytes]], changed: dict[str, bytes], rng: random.Random
) -> str:
    """Other numbers, under a right checksum or the old one; or a shard of another length."""
    name = _shard(base)
    data = bytearray(base.files[name])
    at = rng.randrange(1, len(pairs))
    fields = {number: value for number, _, value in bundles.read_fields(pairs[at][1])}
    start, size = int(fields.get(4, 0)), int(fields.get(5, 0))
    kind = rng.choice(("new", "new", "stale", "cut", "grown"))
    if kind in ("new", "stale") and not fields.get(3) and 0 < size < 30_000:
        data[start : start + min(size, 64)] = rng.randbytes(min(size, 64))
        if kind == "new":
            crc = bundles.masked(bundles.crc32c(bytes(data[start : start + size])))
            kept = [f for f in bundles.read_fields(pairs[at][1]) if f[0] != 6]
            pairs[at] = (pairs[at][0], bundles.write_fields([*kept, (6, 5, crc)]))
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    else:
        data += rng.randbytes(rng.choice((1, 64, 4096)))
    changed[name] = bytes(data)
    return f"numbers {kind}"


def _change_objects(
    base: Base, pairs: list[tuple[bytes, bytes]], changed: dict[str, bytes], rng: random.Random
) -> str:
    """Another object graph, which TensorFlow stores as a text with a checksum of its own."""
    key = b"_CHECKPOINTABLE_OBJECT_GRAPH"
    at = next((i for i, pair in enumerate(pairs) if pair[0] == key), None)
    if at is None:
        return "no objects"
    fields = {number: value for number, _, value in bundles.read_fields(pairs[at][1])}
    name = _shard(base)
    data, start = base.files[name], int(fields.get(4, 0))
    length, begin = bundles.read_varint(data, start)
    graph = data[begin + 4 : begin + 4 + length]
    if rng.random() < 0.5:
        graph, what = damage(graph, rng)
    else:
        graph, what = _changed_graph(graph, rng)
    crc = bundles.crc32c(struct.pack("<I", len(graph)))
    lengths = bundles.varint(len(graph)) + struct.pack("<I", bundles.masked(crc))
    text = lengths + graph
    whole = bundles.crc32c(struct.pack("<I", len(graph)) + lengths[-4:] + graph)
    entry = [f for f in bundles.read_fields(pairs[at][1]) if f[0] not in (4, 5, 6)]
    entry += [(4, 0, len(data)), (5, 0, len(text)), (6, 5, bundles.masked(whole))]
    pairs[at] = (key, bundles.write_fields(entry))
    changed[name] = data + text
    return f"objects {what}"


def _changed_graph(graph: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Edges that lead elsewhere, names and keys that are exchanged."""
    nodes = [bytes(value) for _, _, value in bundles.read_fields(graph) if isinstance(value, bytes)]
    at = rng.randrange(len(nodes))
    fields = bundles.read_fields(nodes[at])
    if not fields:
        return graph + b"\x0a\x00", "a node"
    which = rng.randrange(len(fields))
    number, wire, value = fields[which]
    if isinstance(value, bytes):
        inner = bundles.read_fields(value)
        spot = rng.randrange(len(inner)) if inner else 0
        if inner:
            n, w, old = inner[spot]
            texts = [b"_root", b"kernel", b"gamma", b"", b"\xff", b"x" * 999]
            new: Any = (
                rng.choice(texts)
                if isinstance(old, bytes)
                else rng.choice((0, rng.randrange(len(nodes)), odd_number(rng, old) % (1 << 64)))
            )
            inner[spot] = (n, w, new)
        value = bundles.write_fields(inner)
    fields[which] = (number, wire, value)
    if rng.random() < 0.2:
        fields *= rng.choice((2, 20))
    nodes[at] = bundles.write_fields(fields)
    return bundles.write_fields([(1, 2, node) for node in nodes]), "edge"


def _damaged_blocks(pairs: list[tuple[bytes, bytes]], rng: random.Random) -> bytes:
    """A table whose first block is damaged under a right checksum."""
    table = bundles.write_table(pairs, len(pairs))
    footer = table[-48:]
    _, at = bundles.read_varint(footer, 0)
    size_of_meta, at = bundles.read_varint(footer, at)
    offset, at = bundles.read_varint(footer, at)
    meta = offset - 5 - size_of_meta
    block, _ = damage(table[: meta - 5], rng, [(0, 12), (max(0, meta - 21), max(1, meta - 5))])
    if rng.random() < 0.7:
        block = block[: meta - 5].ljust(meta - 5, b"\0")
    kind = rng.choice((b"\0", b"\0", b"\0", b"\1", b"\7"))
    crc = struct.pack("<I", bundles.masked(bundles.crc32c(block + kind)))
    return block + kind + crc + table[meta:]


def _other_files(base: Base, rng: random.Random, place: Path) -> tuple[Path, str]:
    """A shard that is missing, named otherwise, empty, or of another checkpoint."""
    path = base.write(place)
    shard = place / "input-folder" / rng.choice([name for name in base.files if ".data" in name])
    kind = rng.choice(("gone", "empty", "renamed", "index", "hub"))
    if kind == "gone":
        shard.unlink()
    elif kind == "empty":
        shard.write_bytes(b"")
    elif kind == "renamed":
        number = rng.choice((0, 1, 99999))
        count, prefix = rng.choice((1, 2, 99999)), shard.name.split(".data")[0]
        shard.rename(shard.with_name(f"{prefix}.data-{number:05d}-of-{count:05d}"))
    elif kind == "hub":
        shard.rename(shard.with_name(shard.name.split(".data")[0] + ".data@1"))
    else:
        shard.write_bytes(base.files[next(iter(base.files))])
    return path, f"shard {kind}"


TENSORFLOW = CheckpointTarget(
    "tensorflow", make_bases, structured, judge="tensorflow", judged_path=prefix_of
)
