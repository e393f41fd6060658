"""The checkpoints of a run under attack, which it goes on from; the second reader is of its own.

A folder has two: of step 4, undamaged, and of step 8, damaged. A run must go on from the second if
its checksum is right and from the first if it is not, and refuse a record that no run writes. The
other reader takes the file apart itself, by the lines in which `checkpointing.py` describes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from attacks.checkpoints_under_attack import Attacked, Base
from attacks.engine import READ
from attacks.judges import Judge
from attacks.mutations import change_json, damage, dump_json, odd_number

from bitzoo.training.checkpointing import (
    checkpoint_path,
    latest_checkpoint,
    newest_loop,
    save_checkpoint,
    set_aside,
)
from bitzoo.training.continuation import copy_state, loop_of

EARLIER, LATER = 4, 8
RUN = "0123456789abcdef"
SHAPES = {
    "model.a.weight": (3, 2, 3, 3),
    "buffer.a.mean": (3,),
    "momentum.a.weight": (3, 2, 3, 3),
    "model.scale": (),
}
META = {
    "run_id": RUN,
    "started_with": "a" * 64,
    "changes": [{"step": 2, "key": "lr", "old": 0.1, "new": 0.2, "date": "2026-11-27"}],
    "loop": {
        "selection": {
            "best": {"step": 4, "top1": 0.5, "loss": 0.7},
            "evaluations": 2,
            "without_better": 1,
        },
        "updates": 8,
        "micro_batch": 4,
        "layout": {
            "channels_last": True,
            "fused_norms": True,
            "images": 8,
            "seconds": {"channels last": 2.0, "contiguous": 3.0, "channels last, fused norms": 1.5},
        },
        "scaler": {
            "scale": 65536.0,
            "growth_factor": 2.0,
            "backoff_factor": 0.5,
            "growth_interval": 2000,
            "_growth_tracker": 3,
        },
        "seed": 0,
        "dtype": "float16",
        "architecture": "R50x1",
        "processes": 1,
        "machines": 1,
        "backend": None,
        "threads": 2,
        "device": "cpu",
        "torch": "2.0.0",
    },
}
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}

Facts = tuple[int, Any, dict[str, bytes]]
"""Step, metadata, and the bytes of every tensor."""


def take_apart(data: bytes) -> Facts:
    """Return what a file holds; raises if it is none, or its SHA-256 is another one."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size].decode(), object_pairs_hook=_once)
    about, body = header.pop("__metadata__"), data[8 + size :]
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != end or stop - start != math.prod(entry["shape"]) * _SIZES[entry["dtype"]]:
            raise ValueError("a tensor is not where the one before it ends")
        tensors[name], end = body[start:stop], stop
    if end != len(body):
        raise ValueError("it has another length")
    shapes = {name: entry["shape"] for name, entry in header.items()}
    if about["sha256"] != _digest(about["bitzoo_checkpoint"], shapes, tensors):
        raise ValueError("its SHA-256 is another one")
    record = json.loads(about["bitzoo_checkpoint"])
    return record["step"], record["meta"], tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _digest(record: str, shapes: Mapping[str, Any], tensors: Mapping[str, bytes]) -> str:
    names = sorted(tensors)
    start = json.dumps([record, [[name, list(shapes[name])] for name in names]])
    return hashlib.sha256(start.encode() + b"".join(tensors[name] for name in names)).hexdigest()


def put_together(
    record: str, shapes: Mapping[str, Any], tensors: Mapping[str, bytes], dtypes: Mapping[str, str]
) -> bytes:
    """The opposite of `take_apart`, under a right SHA-256."""
    about = {"bitzoo_checkpoint": record, "format": "pt"}
    header: dict[str, Any] = {"__metadata__": about | {"sha256": _digest(record, shapes, tensors)}}
    end = 0
    for name, content in tensors.items():
        place = [end, end + len(content)]
        header[name] = {"dtype": dtypes[name], "shape": shapes[name], "data_offsets": place}
        end += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


@dataclass
class StatesTarget:
    """What a run goes on from."""

    name: str = "states"
    judge: str = ""
    files: dict[int, bytes] = field(default_factory=dict)
    facts: dict[int, Facts] = field(default_factory=dict)

    def prepare(self, folder: Path, judge: Judge | None) -> None:
        for step in (EARLIER, LATER):
            numbers = torch.Generator().manual_seed(step)
            state = {name: torch.randn(shape, generator=numbers) for name, shape in SHAPES.items()}
            self.files[step] = save_checkpoint(folder, step, state, META).read_bytes()
            self.facts[step] = take_apart(self.files[step])
            tensors = {name: tensor.numpy().tobytes() for name, tensor in state.items()}
            assert self.facts[step] == (step, META, tensors)
            kinds = dict.fromkeys(SHAPES, "F32")
            record = json.dumps({"step": step, "meta": META})
            made = put_together(record, SHAPES, tensors, kinds)
            assert take_apart(made) == self.facts[step]
        case = self._write(folder / "prepared", {LATER: self.files[LATER]}, "")
        assert self.differs(case, self.read(case), judge) == (READ, "")

    def _write(self, place: Path, files: Mapping[int, bytes], label: str) -> Attacked:
        folder = place / "input-folder"
        folder.mkdir(parents=True)
        (step,) = files
        for number, data in {EARLIER: self.files[EARLIER], **files}.items():
            checkpoint_path(folder, number).write_bytes(data)
        base = Base("run", {"damaged": files[step]})
        return Attacked(checkpoint_path(folder, step), label, base, place)

    def attack(self, rng: random.Random, place: Path) -> Attacked:
        whole, kind, step = self.files[LATER], rng.random(), LATER
        if kind < 0.35:
            size = 8 + int.from_bytes(whole[:8], "little")
            data, label = damage(whole, rng, [(0, 16), (0, size)], self.files[EARLIER])
        elif kind < 0.8:
            data, label = self._other_record(rng)
        elif kind < 0.95:
            data, label = self._other_tensors(rng)
        else:
            data, step, label = whole, rng.choice((9, 12, 99_999_999)), "another name"
        return self._write(place, {step: data}, label)

    def _other_record(self, rng: random.Random) -> tuple[bytes, str]:
        record = {"step": LATER, "meta": META}
        if rng.random() < 0.75:  # what the loop says of itself decides on how it goes on
            loop, label = change_json(META["loop"], rng)
            text = dump_json({"step": LATER, "meta": META | {"loop": loop}})
        else:
            changed, label = change_json(record, rng)
            text = dump_json(changed)
        _, _, tensors = self.facts[LATER]
        kinds = dict.fromkeys(SHAPES, "F32")
        return put_together(text.decode(), SHAPES, tensors, kinds), f"record: {label}"

    def _other_tensors(self, rng: random.Random) -> tuple[bytes, str]:
        _, meta, tensors = self.facts[LATER]
        tensors, shapes = dict(tensors), {name: list(shape) for name, shape in SHAPES.items()}
        kinds = dict.fromkeys(SHAPES, "F32")
        name = rng.choice(list(tensors))
        kind = rng.choice(("dtype", "dtype", "gone", "more", "shape", "name"))
        if kind == "dtype":
            kinds[name] = rng.choice(sorted(_SIZES))
            size = math.prod(shapes[name]) * _SIZES[kinds[name]]
            tensors[name] = (tensors[name] * 2)[:size]
        elif kind == "gone":
            del tensors[name]
        elif kind == "more":
            tensors["model.more"], shapes["model.more"] = b"1234", [1]
            kinds["model.more"] = "F32"
        elif kind == "shape":
            shapes[name] = rng.choice(([0], [-1], [2, 1], [odd_number(rng, 3)], shapes[name][::-1]))
            tensors[name] = tensors[name][: 4 * max(0, min(54, math.prod(shapes[name])))]
        else:
            other = rng.choice(("", "model.\x1b[31m", "x" * 5_000, "__metadata__ "))
            tensors = {other if n == name else n: content for n, content in tensors.items()}
            shapes[other], kinds[other] = shapes[name], "F32"
        record = json.dumps({"step": LATER, "meta": meta})
        return put_together(record, shapes, tensors, kinds), f"tensors: {kind} {name}"

    def read(self, case: Attacked) -> Any:
        logging.getLogger("bitzoo").setLevel(logging.ERROR)  # that an earlier one is used
        folder = case.path.parent
        newest_loop(folder)
        found = latest_checkpoint(folder)
        assert found is not None  # one of two is undamaged
        moved = set_aside(folder, lambda meta: meta.get("run_id") in (None, RUN))
        loop = loop_of(found)
        state = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
        copy_state(state, found)
        tensors = {name: tensor.numpy().tobytes() for name, tensor in state.items()}
        return (found.step, found.meta, tensors), loop, found.path.name, len(moved)

    def differs(self, case: Attacked, ours: Any, judge: Judge | None) -> tuple[str, str]:
        facts, loop, name, moved = ours
        if moved > 1:
            return "different", "the undamaged one was put aside"
        if name == checkpoint_path(Path(), EARLIER).name:
            return (
                (READ, "")
                if _same(facts, self.facts[EARLIER])
                else ("different", "other contents of the earlier one")
            )
        try:
            theirs = take_apart(case.base.files["damaged"])
        except Exception as error:
            return "unread", f"{type(error).__name__}: {str(error)[:200]}"
        if not _same(facts, theirs):
            return "different", "other contents than the file's"
        if name != checkpoint_path(Path(), theirs[0]).name:
            return "different", f"{name} is of step {theirs[0]}"
        return (READ, "") if _can_go_on(loop) else ("different", f"goes on with {loop!r:.200}")


def _same(ours: Facts, theirs: Facts) -> bool:
    """Whether they agree; by what is shown of the metadata, in which NaN may be."""
    return ours[0] == theirs[0] and repr(ours[1]) == repr(theirs[1]) and ours[2] == theirs[2]


def _can_go_on(loop: Any) -> bool:
    """Whether a loop could have said this of itself, as far as anything is made of it."""
    selected = loop.get("selection") or {}
    best = selected.get("best") or {"step": 0, "top1": 0, "loss": 0}
    layout, scaler = loop.get("layout") or {"channels_last": True}, loop["scaler"]
    counts = [loop["micro_batch"] - 1, loop["processes"] - 1, loop.get("updates", 0), best["step"]]
    counts += [layout.get("images", 0), *(selected.get(key, 0) for key in _COUNTS)]
    numbers = [*layout.get("seconds", {}).values(), *(scaler or {}).values(), best["top1"]]
    numbers.append(0 if best["loss"] != best["loss"] else min(best["loss"], 1))  # infinite if so
    flags = [layout["channels_last"], layout.get("fused_norms", False)]
    return (
        all(type(count) is int and count >= 0 for count in counts if count is not None)
        and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
        and all(type(flag) is bool for flag in flags)
    )


_COUNTS = ("evaluations", "without_better")

STATES = StatesTarget()
