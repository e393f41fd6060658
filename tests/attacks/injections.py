"""Names and texts that mean something to a terminal, to Markdown or to YAML.

A file, a folder, a class, a tensor, a model or an entry of metadata bears one; then `bitzoo` speaks
of it. Its words must leave a terminal alone, whatever the exit code.
"""

from __future__ import annotations

import json
import random
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from attacks.checkpoints_under_attack import WHOLE
from attacks.engine import READ, REFUSED
from attacks.interruptions import _command
from attacks.judges import Judge
from attacks.safetensors_files import timm_tensors
from safetensors.torch import save

TEXTS = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x1b]8;;http://evil\x1b\\here", "a\nb",
    "a\rb", "\x9b31m",
    "\u202egnp.exe", "\u2066x\u2069", "\u200f\u200e", "\x7f\x08\x08", "\u2028next", "\x85",
    "[link](http://evil)", "<script>alert(1)</script>", "| a | b |", "`code`", "# title", "---",
    "a: b", "- a", "{a: b}", "!!python/object:os.system", "*bold*", "x\n---\nlicense: evil\n---",
    "![](http://evil/x.png)", "&lt;", "'\"", "%s%n{0}", "[red]markup[/red]", "[/]", "${HOME}",
)  # fmt: skip
"""Pieces of the texts."""


@dataclass
class Injected:
    """One model with a text where it should not be."""

    path: Path
    label: str
    words: list[str]
    text: str


@dataclass
class InjectionsTarget:
    """What commands say of names that others have chosen."""

    name: str = "injections"
    judge: str = ""
    weight: float = 0.01
    cpu_seconds: float = 60.0
    weights: bytes = b""

    def prepare(self, folder: Path, judge: Judge | None) -> None:
        self.weights = save(timm_tensors(WHOLE), {"format": "pt"})

    def attack(self, rng: random.Random, place: Path) -> Injected:
        text = "".join(rng.choice((*TEXTS, "x")) for _ in range(rng.choice((1, 1, 2, 3))))
        where = rng.choice(("file", "folder", "class", "tensor", "metadata", "record", "config"))
        name = text.replace("/", "-").replace("\0", "")[:60]
        folder = place / "input-folder"
        folder = folder / name if where == "folder" else folder
        folder.mkdir(parents=True)
        file = folder / (f"{name}.safetensors" if where == "file" else "model.safetensors")
        file.write_bytes(self._weights(where, text))
        if where in ("class", "config"):
            (folder / "config.json").write_text(json.dumps(_config(where, text, rng)))
        target = folder if where in ("class", "config", "folder") else file
        command = rng.choice(
            ("info", "info", "info --json", "convert", "convert --json", "verify", "card")
        )
        words = [*command.split(), str(target)]
        if command.startswith("convert"):
            name = rng.choice(("out.safetensors", f"{name}.safetensors"))
            words = [
                *command.split(),
                "--check",
                "none",
                "--src",
                str(target),
                "--dst",
                str(place / name),
            ]
        elif command == "verify":
            words = ["verify", str(target), str(target), "--check", "weights"]
        return Injected(place, f"{command} of a {where} {text!r}", words, text)

    def _weights(self, where: str, text: str) -> bytes:
        if where not in ("tensor", "metadata", "record"):
            return self.weights
        size = int.from_bytes(self.weights[:8], "little")
        header: dict[str, Any] = json.loads(self.weights[8 : 8 + size])
        if where == "tensor":
            header[text] = header.pop("norm.weight")
        elif where == "metadata":
            header["__metadata__"] |= {"model": text, text: text, "kernel_scale": text}
        else:
            record = {"architecture": "50x1", "num_classes": 3, "in_chans": 3, "source": text}
            record |= {"identity": {"name": text, "basis": text, "evidence": text}, "base": text}
            header["__metadata__"]["bitzoo"] = json.dumps(record)
        data = json.dumps(header).encode()
        return len(data).to_bytes(8, "little") + data + self.weights[8 + size :]

    def read(self, case: Injected) -> tuple[int, str]:
        return _command(case.words, case.path)

    def differs(
        self, case: Injected, ours: tuple[int, str], judge: Judge | None
    ) -> tuple[str, str]:
        code, said = ours
        if code not in (0, 2) or "Traceback" in said:
            return "crashed", f"exit {code}: {said[-300:]!r}"
        if strange := {c for c in said if _commands_terminal(c)}:
            return "message", f"prints {sorted(strange)} in {said[:200]!r}"
        if case.words[0] == "card" and code == 0:
            return _judge_card(said)
        if "--json" in case.words and code == 0:
            json.loads(said)
        return (READ if code == 0 else REFUSED), ""


def _config(where: str, text: str, rng: random.Random) -> dict[str, Any]:
    if where == "class":
        names = [text, "dog", "newt"]
        if rng.random() < 0.5:
            return {"architecture": "resnetv2_50x1_bit", "num_classes": 3, "label_names": names}
        return {"model_type": "bit", "id2label": {str(i): name for i, name in enumerate(names)}}
    key = rng.choice(("architecture", "model_type", "problem_type", "interpolation", "activation"))
    config: dict[str, Any] = {"architecture": "resnetv2_50x1_bit", "num_classes": 3, key: text}
    config["pretrained_cfg"] = {key: text, "tag": text, "input_size": [3, 64, 64]}
    return config


def _commands_terminal(character: str) -> bool:
    """Whether a character does something else than to stand there."""
    if character == "\n" or character == "\t":
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs")


def _judge_card(text: str) -> tuple[str, str]:
    """A card has one head of YAML, and no HTML of the model's."""
    if not text.startswith("---\n"):
        return READ, ""
    head, _, body = text[4:].partition("\n---\n")
    content = yaml.safe_load(head)
    if not isinstance(content, dict) or content.get("license") == "evil":
        return "different", f"the card's head is {head[:200]!r}"
    if "<script" in body or "](http://evil" in body:
        return "different", "the card has the text's own links or HTML"
    return READ, ""


INJECTIONS = InjectionsTarget()
