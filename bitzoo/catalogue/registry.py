"""The catalogue: every public BiT checkpoint by name, as data. No torch.

A few pattern rows, one per family of checkpoints, expand to all names. Sources of the released
files and their names: google-research/big_transfer README; google-research/big_vision
models/bit_paper.py and configs/proj/distill/common.py. No released file could be opened where this
was written; what is only inferred is listed in `ModelSpec.unverified`.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import functools
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bitzoo.catalogue.claims import claims_of, metrics_of
from bitzoo.catalogue.metadata import (
    ALIASES,
    DOUBTS,
    PREPROCESSING,
    SOURCES,
    TEACHER_TASKS,
    Metric,
    Preprocessing,
)
from bitzoo.catalogue.places import Place, handle_of, names_by_handle, places_of
from bitzoo.catalogue.protocols import Claim
from bitzoo.catalogue.vtab_tasks import TASKS
from bitzoo.errors import UnknownModelError, WeightsUnavailableError
from bitzoo.models.architecture import ARCHITECTURES, Architecture

__all__ = [
    "BASE_URL",
    "Metric",
    "ModelSpec",
    "Preprocessing",
    "find_spec",
    "get_spec",
    "list_claims",
    "list_models",
]

BASE_URL = "https://storage.googleapis.com/bit_models/"
"""Google's public bucket; the paths in `ModelSpec.files` are relative to it."""

Activation = Literal["sigmoid", "softmax"]

_MOST_FILES = 1000
"""A mistyped name is compared with so many files at most."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything the catalogue knows about one checkpoint.

    Attributes:
        name: The name, spelled as released.
        family: The pattern row it belongs to: ``BiT-S``, ``BiT-M-VTAB``, ...
        arch_name: A key of `bitzoo.models.architecture.ARCHITECTURES`, such as ``R50x1``.
        num_classes: Outputs of the head.
        activation: Turns logits into scores: ``sigmoid`` for a multi-label head (one sigmoid per
            class), else ``softmax``.
        dataset: What the network was pre-trained on.
        task: What the head predicts.
        preprocessing: How to prepare an image for this checkpoint.
        files: Format (``npz``, ``h5``, ``tfhub``) -> path below `BASE_URL`; a ``tfhub`` path is a
            folder.
        label_set: The name under which `timm.data.ImageNetInfo` has the class names, or None.
        label_note: Why there is no `label_set`; empty if there is one.
        aliases: Other names of the same checkpoint: file stems, big_vision's, timm's.
        metrics: Published scores, each with its source.
        unverified: What nobody has checked against the file, as sentences.
        sources: Where the facts come from.
        released: Whether Google released the weights.
        license: SPDX identifier in lower case, of the repository that released the weights.
        places: Where else the same model was published.
    """

    name: str
    family: str
    arch_name: str
    num_classes: int
    activation: Activation
    dataset: str
    task: str
    preprocessing: Preprocessing
    files: dict[str, str] = field(hash=False)
    label_set: str | None
    label_note: str
    aliases: tuple[str, ...]
    metrics: tuple[Metric, ...]
    unverified: tuple[str, ...]
    sources: tuple[str, ...]
    released: bool
    license: str = "apache-2.0"
    places: tuple[Place, ...] = ()

    @property
    def architecture(self) -> Architecture:
        """Depths and width of the network."""
        return ARCHITECTURES[self.arch_name]

    @property
    def resolution(self) -> int:
        """Side of the image that the network sees, in pixels."""
        return self.preprocessing.crop

    @property
    def num_params(self) -> int:
        """Number of parameters, including the head."""
        return self.architecture.num_params(self.num_classes)

    def fits(self, architecture: Architecture, num_classes: int) -> bool:
        """Whether a network with that architecture and class count can be this checkpoint."""
        return (architecture, num_classes) == (self.architecture, self.num_classes)

    def url(self, format: str = "npz") -> str:  # noqa: A002
        """Return the address of a released file (of the folder, for ``tfhub``).

        Raises:
            WeightsUnavailableError: If there is no such file.
        """
        if not self.released:
            raise WeightsUnavailableError(
                f"{self.name} is only known as an architecture: Google never released weights "
                "trained on JFT-300M (big_transfer#4, #50). To use your own, give the path of "
                "your file instead of the name."
            )
        if format not in self.files:
            raise WeightsUnavailableError(
                f"{self.name} was not released as {format!r}, only as {', '.join(self.files)}. "
                "Use one of these."
            )
        return BASE_URL + self.files[format]

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON-ready data, including derived sizes and addresses."""
        record = asdict(self)
        record["architecture"] = {
            "depths": list(self.architecture.depths),
            "width": self.architecture.width,
            "num_features": self.architecture.num_features,
        }
        record["resolution"] = self.resolution
        record["num_params"] = self.num_params
        record["urls"] = {kind: self.url(kind) for kind in self.files}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in record.items()}


def list_models(pattern: str = "*", *, released: bool | None = None) -> list[str]:
    """Return the catalogue's names that match a pattern, in the catalogue's order.

    Args:
        pattern: Shell wildcards (``*``, ``?``, ``[...]``), or a part of the name, such as
            ``R50``; case, ``-`` and ``_`` do not matter.
        released: True for only checkpoints that Google released, False for only those that it
            never released, None for all.

    Returns:
        The names; an empty list if nothing matches.
    """
    wanted = _pattern_key(pattern)
    if not any(wildcard in pattern for wildcard in "*?["):
        wanted = f"*{wanted}*"
    return [
        name
        for name, spec in _catalogue().items()
        if fnmatch.fnmatchcase(_key(name), wanted) and released in (None, spec.released)
    ]


def list_claims(model: str = "*") -> list[Claim]:
    """Return every published figure of the catalogue, with its protocol and command.

    `bitzoo reproduce --list` shows them; `bitzoo.reproduce` measures one again.

    Args:
        model: A name or alias, or a pattern as for `list_models`.

    Returns:
        The figures in the catalogue's order; an empty list if nothing was published.

    Raises:
        UnknownModelError: If no model is called so.
    """
    spec = find_spec(model)
    names = [spec.name] if spec else list_models(model) or [get_spec(model).name]
    return [claim for name in names for claim in claims_of(name)]


def get_spec(name: str) -> ModelSpec:
    """Return the catalogue entry of a name or alias; case, ``-`` and ``_`` do not matter.

    Args:
        name: The name as released, or an alias of the checkpoint.

    Returns:
        The entry.

    Raises:
        UnknownModelError: If there is none; the message gives the nearest names, of files too.
    """
    spec = find_spec(name)
    if spec is None:
        near = ", ".join(_nearest_names(name)) or "none is similar"
        nowhere = "" if os.path.exists(name) else ", and there is no such file or folder here"
        files = ", ".join(map(repr, _nearest_files(name)))
        raise UnknownModelError(
            f"{name!r} is not a name in the catalogue of BiT checkpoints{nowhere}. "
            f"Nearest names: {near}. {f'Nearest files: {files}. ' if files else ''}"
            "`bitzoo list` shows all names, `bitzoo list 'BiT-M-*'` those that match a pattern."
        )
    return spec


def find_spec(name: str) -> ModelSpec | None:
    """Like `get_spec`, but None for an unknown name.

    An address or path of one of its `places` is a name too: ``google/bit/m-r50x1``.
    """
    if "/" in name:
        known = names_by_handle().get(handle_of(name))
        return _catalogue()[known] if known else None
    return _index().get(_key(name))


def _key(name: str) -> str:
    return re.sub("[-_]", "", name.casefold())


def _pattern_key(pattern: str) -> str:
    # Inside brackets "-" denotes a range and is kept.
    return re.sub(r"(\[[^\]]*\])|[-_]", lambda match: match[1] or "", pattern.casefold())


def _nearest_names(name: str, count: int = 4) -> list[str]:
    index = _index()
    keys = difflib.get_close_matches(_key(name), index, n=3 * count)
    return list(dict.fromkeys(index[key].name for key in keys))[:count]


def _nearest_files(name: str, count: int = 2) -> list[str]:
    """Return what has nearly this name in the working folder: a path may be mistyped, too."""
    with contextlib.suppress(OSError), os.scandir() as entries:
        names = [entry.name for entry in itertools.islice(entries, _MOST_FILES)]
        return difflib.get_close_matches(name, names, n=count, cutoff=0.75)
    return []


@functools.cache
def _catalogue() -> dict[str, ModelSpec]:
    return {spec.name: spec for row in _FAMILIES for spec in _expand(row)}


@functools.cache
def _index() -> dict[str, ModelSpec]:
    return {
        _key(name): spec for spec in _catalogue().values() for name in (spec.name, *spec.aliases)
    }


@dataclass(frozen=True)
class _Family:
    """A pattern row. Texts may use {arch}, {size} (arch without R), {name} and a variant's keys.

    `variants` lists what differs besides the architecture; `preprocessing` is a key of
    PREPROCESSING; a variant's own `num_classes` overrides the row's; only _PAPER_ARCHS have h5.
    """

    family: str
    name: str
    dataset: str
    task: str
    preprocessing: str
    files: Mapping[str, str]
    archs: tuple[str, ...] = tuple(ARCHITECTURES)
    variants: tuple[Mapping[str, Any], ...] = ({},)
    num_classes: int = 1000
    activation: Activation = "softmax"
    label_set: str | None = None
    label_note: str = ""
    aliases: tuple[str, ...] = ()
    released: bool = True


def _expand(row: _Family) -> Iterator[ModelSpec]:
    for arch, variant in itertools.product(row.archs, row.variants):
        values = {"arch": arch, "size": arch.removeprefix("R"), **variant}
        values["name"] = name = row.name.format(**values)
        protocol = row.preprocessing.format(**values)
        own_protocol = f"{protocol}-{arch}"
        yield ModelSpec(
            name=name,
            family=row.family,
            arch_name=arch,
            num_classes=variant.get("num_classes", row.num_classes),
            activation=row.activation,
            dataset=row.dataset,
            task=row.task.format(**values),
            preprocessing=PREPROCESSING[
                own_protocol if own_protocol in PREPROCESSING else protocol
            ],
            files={
                kind: path.format(**values)
                for kind, path in row.files.items()
                if kind != "h5" or arch in _PAPER_ARCHS
            },
            label_set=row.label_set,
            label_note=row.label_note.format(**values),
            aliases=(*(alias.format(**values) for alias in row.aliases), *ALIASES.get(name, ())),
            metrics=metrics_of(name),
            unverified=(*DOUBTS.get(row.family, ()), *DOUBTS.get(name, ())),
            sources=SOURCES[row.family],
            released=row.released,
            places=places_of(name),
        )


_PAPER_ARCHS = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x4")
"""The architectures of the paper; R152x2 came later, without h5 files or VTAB runs."""

_NO_NAMES = "Released without class names; their order is that of {task} in tensorflow_datasets."

_FAMILIES = (
    _Family(
        family="BiT-S",
        name="BiT-S-{arch}",
        dataset="ilsvrc-2012",
        task="ilsvrc-2012",
        preprocessing="upstream",
        files={"npz": "{name}.npz", "h5": "{name}.h5"},
        label_set="imagenet1k",
    ),
    _Family(
        family="BiT-M",
        name="BiT-M-{arch}",
        dataset="imagenet-21k",
        task="imagenet-21k",
        num_classes=21843,
        activation="sigmoid",
        preprocessing="upstream",
        files={"npz": "{name}.npz", "h5": "{name}.h5"},
        label_set="imagenet21k_goog",
        aliases=("resnetv2_{size}_bit.goog_in21k", "resnetv2_{size}_bitm_in21k"),
    ),
    _Family(
        family="BiT-M-ILSVRC2012",
        name="BiT-M-{arch}-ILSVRC2012",
        dataset="imagenet-21k",
        task="ilsvrc-2012",
        preprocessing="ilsvrc",
        files={"npz": "{name}.npz"},
        label_set="imagenet1k",
        aliases=(
            "BiT-M-{arch}-imagenet2012",
            "resnetv2_{size}_bit.goog_in21k_ft_in1k",
            "resnetv2_{size}_bitm",
        ),
    ),
    _Family(
        family="BiT-distilled",
        name="BiT-{arch}_{px}",
        archs=("R50x1",),
        dataset="ilsvrc-2012",
        task="ilsvrc-2012",
        preprocessing="distill-{px}",
        files={"npz": "distill/{arch}_{px}.npz"},
        label_set="imagenet1k",
        aliases=("{arch}_{px}",),
        variants=({"px": 224}, {"px": 160}),
    ),
    _Family(
        family="BiT-teacher",
        name="BiT-{arch}_T_{px}",
        archs=("R152x2",),
        dataset="imagenet-21k",
        task="ilsvrc-2012",
        preprocessing="distill-{px}",
        files={"npz": "distill/{arch}_T_{px}.npz"},
        label_set="imagenet1k",
        aliases=("{arch}_T_{px}",),
        variants=({"px": 224}, {"px": 384}),
    ),
    _Family(
        family="BiT-teacher-128",
        name="BiT-{arch}_T_{short}128",
        archs=("R152x2",),
        dataset="imagenet-21k",
        task="{task}",
        preprocessing="distill-128",
        files={"npz": "distill/{arch}_T_{short}128.npz"},
        label_note=_NO_NAMES,
        aliases=("{arch}_T_{short}128",),
        variants=tuple(
            {"short": short, "task": task, "num_classes": classes}
            for short, (task, classes) in TEACHER_TASKS.items()
        ),
    ),
    _Family(
        family="BiT-M-VTAB",
        name="BiT-M-{arch}-run{run}-{task}",
        archs=_PAPER_ARCHS,
        dataset="imagenet-21k",
        task="vtab/{task}",
        preprocessing="vtab-{images}",
        files={"npz": "vtab/{name}.npz", "tfhub": "vtab/{name}.tfhub/"},
        label_note=_NO_NAMES,
        variants=tuple(
            {
                "run": run,
                "task": task.name,
                "num_classes": task.classes,
                "images": "small" if task.small else "large",
            }
            for run in range(3)
            for task in TASKS.values()
        ),
    ),
    _Family(
        family="BiT-L",
        name="BiT-L-{arch}",
        dataset="jft-300m",
        task="jft-300m",
        num_classes=18291,
        preprocessing="upstream",
        files={},
        label_note="The class names of JFT-300M are not public.",
        released=False,
    ),
)
