"""What all cards share: Markdown escaping, tables of proofs, snippets."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.errors import UsageError, reason_of
from bitzoo.models.architecture import ARCHITECTURES

if TYPE_CHECKING:
    from jinja2 import Environment

_CONTROLS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff"
_NOT_TEXT = re.compile(f"[{_CONTROLS}]")
_MOST_DEPTH = 100
"""Most levels of a card's metadata; the Hub's have five."""
_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Marks that show the text after them in another order than it is written in."""


def escape(text: object) -> str:
    """Escape text so that Markdown shows it unchanged, also in a table; returns one line.

    Everything in a card that others wrote goes through here or through `code`: names of folders,
    classes and models, and whatever a file states about itself.
    """
    marked = re.sub(r"([\\`*_{}\[\]<>|#&~$])", r"\\\1", _one_line(text))
    # what is a list, a rule or the line below a heading at the beginning of a line
    start = r"^([-+](?=\s|$)|[-=](?=[-=\s]*$)|\d+(?=[.)](?:\s|$)))"
    return re.sub(start, _escaped_start, marked)


def _escaped_start(match: re.Match[str]) -> str:
    return f"{match[1]}\\" if match[1].isdigit() else f"\\{match[1]}"


def code(text: object) -> str:
    """Return text as a code span of one line, also for tables, without what would end the span."""
    plain = _one_line(text).replace("`", "'").replace("|", "\\|")
    return f"`{plain or ' '}`"


def _one_line(text: object) -> str:
    return _DIRECTIONS.sub("\ufffd", " ".join(str(text).split()))


@functools.cache
def environment() -> Environment:
    """Return the Jinja2 environment of this folder's templates; an unknown variable is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; text that may contain markup goes through `md`
    )
    made.filters |= {"md": escape, "code": code, "count": lambda number: f"{number:,}"}
    return made


def clean(text: str) -> str:
    """Replace characters that do not belong in text, such as control characters in a file name."""
    return _NOT_TEXT.sub("\ufffd", text)


def proof_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return a report's comparisons: proof, compared with, found, allowed."""
    weights = report["weights"]
    differing = len(weights["differing"])
    equal = f"{differing} tensors differ" if differing else "every bit equal"
    whole = weights | {"found": equal, "allowed": "equal"}  # older reports have no groups
    rows = [
        (
            "weights",
            f"{group['tensors']} tensors, {group['params']:,} numbers, of the source",
            group["found"],
            group["allowed"],
        )
        for group in weights.get("groups", [whole])
    ]
    for proof in report["logits"]:
        rows.append(
            (
                "logits",
                f"{proof['oracle']}; {proof['images']} random images of {proof['size']} px, "
                f"network in {proof['dtype']}",
                f"{proof['relative_l2']:.1e} relative L2",
                f"{proof['tolerance']:.0e}",
            )
        )
    return rows


def timm_loads(info: ModelInfo) -> bool:
    """Whether timm has the architecture by name, for images of three channels."""
    return info.architecture in ARCHITECTURES and info.in_chans == 3


def snippets(repo: str, info: ModelInfo) -> dict[str, str]:
    """Return Python snippets for bitzoo and, if timm has the architecture, timm and transformers.

    Args:
        repo: Full name of the repository.
        info: What is known about the model.
    """
    names = info.own_names is not None or info.label_set is not None
    function = {"sigmoid": ".sigmoid()", "softmax": ".softmax(-1)", None: ""}[info.activation]
    shown = "names[index]" if names else "index"
    read = 'transform("photo.jpg")[None]'
    found = {
        "bitzoo": [
            "import bitzoo",
            "import torch",
            "",
            f"model = bitzoo.create_model({json.dumps('hub:' + repo)}, pretrained=True)",
            "transform = bitzoo.create_transform(model)",
            *(["names = bitzoo.labels(model)"] if names else []),
            "with torch.no_grad():",
            f"    scores = model({read})[0]{function}",
            "for index in scores.topk(min(5, len(scores))).indices.tolist():",
            f"    print({shown}, float(scores[index]))",
        ]
    }
    if timm_loads(info):
        found["timm"] = [
            "import timm",
            "import torch",
            "from PIL import Image",
            "",
            f"model = timm.create_model({json.dumps('hf-hub:' + repo)}, pretrained=True).eval()",
            "config = timm.data.resolve_model_data_config(model)",
            "transform = timm.data.create_transform(**config, is_training=False)",
            'image = Image.open("photo.jpg").convert("RGB")',
            "with torch.no_grad():",
            f"    scores = model(transform(image)[None])[0]{function}",
            "print(scores.topk(min(5, len(scores))))",
        ]
        found["transformers"] = [
            "import torch",
            "from PIL import Image",
            "from transformers import AutoImageProcessor, AutoModelForImageClassification",
            "",
            f"processor = AutoImageProcessor.from_pretrained({json.dumps(repo)})",
            f"model = AutoModelForImageClassification.from_pretrained({json.dumps(repo)})",
            'image = Image.open("photo.jpg").convert("RGB")',
            "with torch.no_grad():",
            '    logits = model(**processor(image, return_tensors="pt")).logits',
            f"scores = logits[0]{function}",
            "print(scores.topk(min(5, len(scores))))",
        ]
    return {name: "\n".join(lines) for name, lines in found.items()}


def spark(values: Sequence[float]) -> str:
    """Draw numbers as bars of eight heights, scaled from the lowest to the highest."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / span)] for value in values)


def read_metadata(front_matter: str) -> dict[Any, Any]:
    """Return the metadata of a card, from the text between its lines of ---.

    Raises:
        Exception: Of several kinds, if it is no mapping in YAML, uses aliases, with which a page
            can stand for more than any memory holds, or is nested so deeply that it takes minutes.
    """
    import yaml

    depth = 0
    for event in yaml.parse(front_matter):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("an alias, as in *name, cannot be used: write the value out")
        if depth > _MOST_DEPTH:
            raise ValueError(f"it is nested more than {_MOST_DEPTH} times")
    found = yaml.safe_load(front_matter)
    if not isinstance(found, dict):
        raise TypeError(f"expected key: value, found {type(found).__name__}")
    return found


@contextmanager
def metadata_reported() -> Iterator[None]:
    """Turn whatever is raised about a card's metadata into one error.

    Raises:
        UsageError: It names the card.
    """
    try:
        yield
    except Exception as error:  # of its libraries, of many kinds
        raise UsageError(
            f"README.md: the card's metadata cannot be used: {reason_of(error)}. Correct it."
        ) from error


def validate_card(text: str) -> None:
    """Check a card's metadata with huggingface_hub's own parser.

    Raises:
        UsageError: If there is no metadata, or it is not what the Hub expects.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.match(text)
    if not block:
        raise UsageError(
            "The card has no metadata: expected a YAML block between two lines of --- at the very "
            "beginning. Add it, or remove README.md so that bitzoo writes a card."
        )
    with metadata_reported():
        read_metadata(block[2])
        ModelCard(text)
