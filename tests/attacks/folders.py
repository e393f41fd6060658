"""Model folders under attack: the JSON beside the weights, and an index of shards.

What a `config.json` says has no second reader, but rules: JSON that is none is refused, what is
understood can be written and read again, and names of classes are those that the file lists.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attacks import safetensors_files
from attacks.checkpoints_under_attack import PART, WHOLE, Attacked, Base, CheckpointTarget
from attacks.engine import READ
from attacks.judges import Arrays, Judge
from attacks.mutations import change_json, damaged_json, dump_json
from checkpoints import write_npz
from safetensors.torch import save

from bitzoo.catalogue.metadata import Preprocessing
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.converters.convert import convert
from bitzoo.converters.formats.checkpoint_formats import Target as Format
from bitzoo.converters.formats.timm_config import render_timm_config
from bitzoo.converters.identify import identify
from bitzoo.converters.model_record import read_info
from bitzoo.converters.open import open_source

WEIGHTS = "model.safetensors"
NAMES = ("cat", "dog", "newt")


@dataclass
class ConfigTarget:
    """`config.json` and the processor's file beside a whole network."""

    name: str = "config"
    judge: str = ""
    bases: dict[str, dict[str, bytes]] = field(default_factory=dict)
    weights: Path = Path()

    def prepare(self, folder: Path, judge: Judge | None) -> None:
        """Write the same model as bitzoo, as timm and as transformers store it."""
        source = write_npz(folder / "bit.npz", WHOLE)
        convert(source, folder / "hf", target=Format("transformers"))
        self.weights = folder / WEIGHTS
        self.weights.write_bytes(save(safetensors_files.timm_tensors(WHOLE)))
        found = {path.name: path.read_bytes() for path in (folder / "hf").glob("*.json")}
        with open_source(source) as opened:
            inventory = identify(opened)
            info, _ = read_info(opened, inventory)
        stated = info.stating("a test", own_names=NAMES, activation="softmax")
        way = Preprocessing(128, 160, "bilinear", True, "a test")
        stated = stated.stating("a test", preprocessing=way)
        own = json.loads(json.dumps(render_timm_config(stated)))
        timm = {key: value for key, value in own.items() if key != "bitzoo"}
        hf = json.loads(found["config.json"])
        hf |= {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
        plain = {key: value for key, value in hf.items() if key != "bitzoo"}
        processor = {n: data for n, data in found.items() if n != "config.json"}
        new = {
            "processor_config.json": dump_json(
                {"image_processor": json.loads(found["preprocessor_config.json"])}
            )
        }
        self.bases = {
            "bitzoo": {"config.json": dump_json(own)},
            "timm": {"config.json": dump_json(timm)},
            "transformers": {"config.json": dump_json(plain)} | processor,
            "transformers of bitzoo": {"config.json": dump_json(hf)} | processor,
            "transformers 5": {"config.json": dump_json(plain)} | new,
        }
        for name, files in self.bases.items():
            place = folder / name
            place.mkdir()
            case = self._write(files, place, name)
            assert self.differs(case, self.read(case), None) == (READ, ""), name

    def _write(self, files: dict[str, bytes], place: Path, label: str) -> Attacked:
        folder = place / "input-folder"
        folder.mkdir()
        os.link(self.weights, folder / WEIGHTS)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return Attacked(folder, label, Base(label, files), place)

    def attack(self, rng: random.Random, place: Path) -> Attacked:
        base = rng.choice(list(self.bases))
        files = dict(self.bases[base])
        name = rng.choice(list(files))
        files[name], what = damaged_json(files[name], rng)
        return self._write(files, place, f"{base} {name}: {what}")

    def read(self, case: Attacked) -> ModelInfo:
        with open_source(case.path) as source:
            info, notes = read_info(source, identify(source))
        _ = info.class_names, info.display_rows(), notes, str(info)
        return info

    def differs(self, case: Attacked, ours: ModelInfo, judge: Judge | None) -> tuple[str, str]:
        for name, data in case.base.files.items():
            try:
                json.loads(data.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                return "unread", f"{name} is no JSON: {error}"
        again = ModelInfo.from_dict(json.loads(ours.to_json()))
        if again.to_dict() != ours.to_dict():
            return "different", f"read again: {again.to_dict()} {ours.to_dict()}"[:300]
        config = json.loads(case.base.files["config.json"])
        listed = [v for key in ("id2label", "label_names") for v in _values(config.get(key))]
        record = _values(
            (config.get("bitzoo") or {}).get("bitzoo")
            if isinstance(config.get("bitzoo"), dict)
            else None
        )
        known = (
            {str(value) for value in listed}
            | {str(x) for x in _deep(config)}
            | {str(x) for x in record}
        )
        if ours.own_names and not set(ours.own_names) <= known:
            return "different", f"classes {ours.own_names[:5]} that no file lists"
        return READ, ""


def _values(value: object) -> list[Any]:
    return (
        list(value.values())
        if isinstance(value, dict)
        else value
        if isinstance(value, list)
        else []
    )


def _deep(value: object) -> list[Any]:
    """All texts and numbers in JSON."""
    if isinstance(value, (dict, list)):
        return [x for inner in _values(value) for x in _deep(inner)]
    return [value]


def make_shards(folder: Path) -> list[Base]:
    """A part of a network in two shards with their index."""
    tensors = safetensors_files.timm_tensors(PART)
    names = sorted(tensors)
    half = len(names) // 2
    shards = {
        "model-00001-of-00002.safetensors": names[:half],
        "model-00002-of-00002.safetensors": names[half:],
    }
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {name: shard for shard, listed in shards.items() for name in listed},
    }
    files = {"model.safetensors.index.json": dump_json(index)}
    files |= {shard: save({n: tensors[n] for n in listed}) for shard, listed in shards.items()}
    files["config.json"] = b'{"model_type": "bit"}'
    hot = {shard: [(0, 900)] for shard in shards}
    return [
        Base("folder", files, "", hot=hot, make=index),
        Base("index", files, "model.safetensors.index.json", hot=hot, make=index),
    ]


def structured_shards(base: Base, rng: random.Random, place: Path) -> tuple[Path, str]:
    """Change the index, a shard's header, or which shards there are."""
    index = "model.safetensors.index.json"
    kind = rng.choice(("index", "index", "map", "shard", "files"))
    shards = [name for name in base.files if name.endswith(".safetensors")]
    shard = rng.choice(shards)
    if kind == "index":
        changed, label = damaged_json(base.files[index], rng)
        return base.write(place, {index: changed}), label
    if kind == "map":
        entries = json.loads(base.files[index])
        mapped, label = change_json(entries["weight_map"], rng)
        texts = (
            "../x",
            "/etc/passwd",
            "a/b",
            "",
            ".",
            "..",
            "config.json",
            index,
            "nowhere",
            shard,
        )
        if isinstance(mapped, dict) and mapped and rng.random() < 0.6:
            mapped[rng.choice(list(mapped))] = rng.choice(texts)
        entries["weight_map"] = mapped
        return base.write(place, {index: dump_json(entries)}), f"map {label}"
    if kind == "shard":
        data = base.files[shard]
        size = int.from_bytes(data[:8], "little")
        text, label = safetensors_files.changed_header(data[8 : 8 + size], rng)
        data = len(text).to_bytes(8, "little") + text + data[8 + size :]
        return base.write(place, {shard: data}), f"shard {label}"
    path = base.write(place)
    other = place / "input-folder" / shard
    what = rng.choice(("gone", "empty", "same", "folder"))
    other.unlink()
    if what == "empty":
        other.write_bytes(b"")
    elif what == "folder":
        other.mkdir()
    elif what == "same":
        other.write_bytes(base.files[shards[0]])
    return path, f"shard {what}"


def read_shards(path: Path) -> Arrays:
    """Every tensor of the shards that the index names, each by the library."""
    folder = path if path.is_dir() else path.parent
    index = json.loads((folder / "model.safetensors.index.json").read_bytes().decode())
    found: Arrays = {}
    for shard in set(index["weight_map"].values()):
        found |= safetensors_files.read_here(folder / shard)
    if lost := set(index["weight_map"]) - set(found):
        raise ValueError(f"{lost} are in no shard")
    return found


CONFIG = ConfigTarget()
SHARDS = CheckpointTarget("shards", make_shards, structured_shards, judge_here=read_shards)
