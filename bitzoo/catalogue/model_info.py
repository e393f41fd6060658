"""`ModelInfo`: everything that is known about a model, and who says so.

One record travels with a model through every reader, conversion and export: which release it is and
how that is known, what its outputs mean, how images are prepared for it, which licence it has, and
how its numbers were changed. What is not known is None; nothing here guesses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from bitzoo.catalogue.class_names import class_names_or_reason
from bitzoo.catalogue.metadata import Preprocessing
from bitzoo.catalogue.registry import Activation, ModelSpec, find_spec
from bitzoo.catalogue.run_info import RunInfo
from bitzoo.display import Displayed
from bitzoo.errors import damage_reported

Basis = Literal[
    "catalogue", "google", "manifest", "vouched", "mirror", "stated", "file name", "unknown"
]
"""How it is known which release a model is, strongest first.

=============  ====================================================================================
``catalogue``  it is the catalogue's own entry; no file was read
``google``     its bytes came from Google's address and match the checksum that the server stated
``manifest``   a bitzoo manifest lists exactly these bytes (SHA-256) as that release
``vouched``    a person vouched for it
``mirror``     its bytes came from another address, or from a server that stated no checksum
``stated``     the file's own metadata say so, which anyone can write
``file name``  the file has its name, and architecture and class count agree
``unknown``    nothing says which release it is, if any
=============  ====================================================================================
"""

_ESTABLISHED = frozenset({"catalogue", "google", "manifest", "vouched"})
_OTHER_HEAD = (
    "The class names that came with the weights belong to their original head; this model has "
    "another head, whose classes have no names."
)
_ADVICE = "Convert the model again from its source."
_MOST = 1 << 24
"""Bound on classes and channels in a record; the largest released head has 21,843 classes."""
_UNMEASURED = "unmeasured"
"""Ten characters, like a measured distance, so that a header can be rewritten in place."""


@dataclass(frozen=True)
class Identity:
    """Which release a model is, and how that is known.

    Attributes:
        name: Catalogue name; None for a model that is not a known release.
        basis: How that is known, see `Basis`.
        evidence: The evidence, as a phrase: an address, a file's name, who vouched.
    """

    name: str | None = None
    basis: Basis = "unknown"
    evidence: str = ""

    @property
    def established(self) -> bool:
        """Whether it may be presented as the release, with that release's published scores."""
        return self.name is not None and self.basis in _ESTABLISHED

    @property
    def spec(self) -> ModelSpec | None:
        """The catalogue's entry."""
        return find_spec(self.name) if self.name else None

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Identity:
        """Return the identity that `dataclasses.asdict` described.

        Raises:
            CheckpointError: If `record` is something else, as one whose basis is not in `Basis`.
        """
        with damage_reported("identity", "a name, a basis and its evidence", _ADVICE):
            name, basis = record.get("name"), record.get("basis", "unknown")
            if basis not in get_args(Basis):
                raise ValueError(f"identity basis {basis!r:.40}")
            evidence = record.get("evidence", "")
            if not all(isinstance(text, str | None) for text in (name, evidence)):
                raise ValueError("name and evidence must be text")
            return cls(name, basis, evidence or "")

    def as_claim(self, holder: str) -> Identity:
        """Return the identity if only `holder`, which anyone can write, states it."""
        if not self.established:
            return self
        claim = f"{self.basis}: {self.evidence}" if self.evidence else self.basis
        return Identity(self.name, "stated", f"{holder} says: {claim}")

    def __str__(self) -> str:
        """Return name and basis as a readable phrase."""
        if self.name is None:
            return self.evidence or "not a known release"
        reason = {
            "catalogue": "the catalogue's entry",
            "google": "fetched from Google, checksum verified",
            "manifest": "these bytes are listed in a bitzoo manifest",
            "vouched": "vouched for by its publisher",
            "mirror": "fetched from elsewhere, or without a checksum",
            "stated": "according to its own metadata",
            "file name": "by its file name only",
            "unknown": "on an unknown basis",
        }[self.basis]
        return f"{self.name}, {reason}" + (f" ({self.evidence})" if self.evidence else "")


@dataclass(frozen=True)
class Provenance:
    """Where a model's numbers come from, and how they were changed.

    Attributes:
        source: Name of the file that they were first converted from.
        sha256: Its SHA-256; empty if it was not computed.
        url: Where that file was fetched from; None for a local file.
        dtype: The dtype that the numbers were rounded to; if they were not, ``float64`` or
            ``float32``, whichever holds them.
        rounded_from: The dtype that they had before rounding; empty if they are the source's own.
            After several roundings, the dtypes in order: ``float64 to float32``.
        kernel_scale: Factor of the standardized kernels (`eps_exact`); 1 if unchanged.
        weights_relative_l2: How far the last rounding moved the weights; None if nothing was
            rounded or it was not measured.
        logits_relative_l2: The same for the logits.
        weights: Which of that file's sets of weights they are, as kind and place, such as
            ``ema (state_dict_ema)``; None if it had one set.
    """

    source: str
    sha256: str = ""
    url: str | None = None
    dtype: str = "float32"
    kernel_scale: int = 1
    weights_relative_l2: float | None = None
    logits_relative_l2: float | None = None
    rounded_from: str = ""
    weights: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether no conversion changed the numbers of the source; training is not one."""
        return not self.rounded_from and self.kernel_scale == 1

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; distances are strings of ten characters."""
        record = asdict(self)
        for key in ("weights_relative_l2", "logits_relative_l2"):
            record[key] = format_distance(record[key])
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Provenance:
        """Return the provenance that `to_dict` described."""
        measured = {}
        for key in ("weights_relative_l2", "logits_relative_l2"):
            text = str(record.get(key, _UNMEASURED))
            measured[key] = None if text == _UNMEASURED else float(text)
            if not 0 <= (measured[key] or 0) < math.inf:
                raise ValueError(f"{key} is {text:.40}, expected a distance")
        url, dtype = record.get("url"), str(record.get("dtype", "float32"))
        earlier = "float32" if dtype in ("float16", "bfloat16") else ""  # as older records mean it
        return cls(
            source=str(record["source"]),
            sha256=str(record.get("sha256", "")),
            url=None if url is None else str(url),
            dtype=dtype,
            rounded_from=str(record.get("rounded_from", earlier)),
            kernel_scale=int(record.get("kernel_scale", 1)),
            **measured,
            weights=None if record.get("weights") is None else str(record["weights"]),
        )


def format_distance(value: float | None) -> str:
    """Format a distance in ten characters: ``1.2345e-03``, or ``unmeasured``."""
    if value is None:
        return _UNMEASURED
    return f"{value if value == 0 else max(value, 1e-99):.4e}"  # less would take a character more


@dataclass(frozen=True, repr=False)
class ModelInfo(Displayed):
    """Everything that is known about a model; what is not known is None.

    Attributes:
        architecture: Name of the architecture, such as ``R50x1`` or ``R(1,1,1,1)x0.5``.
        num_classes: Outputs of the head; 0 without a head.
        in_chans: Channels of the images.
        identity: Which release it is, and how that is known.
        base: For a model whose head is not the one that its weights came with: which release the
            weights were.
        label_set: The published list of its classes, a key of timm's `ImageNetInfo`.
        own_names: Its class names if they are not a published list.
        activation: Turns logits into scores: ``sigmoid`` or ``softmax``.
        preprocessing: How images are prepared, and who says so.
        license: SPDX identifier in lower case.
        provenance: Where its numbers come from.
        run: For a model that bitzoo trained, what it was trained on.
        sources: Name of an attribute -> who states it.
        refused: Name of an attribute -> why the value that was found cannot be used.
        path: The file that the weights were read from; not part of the record.
    """

    architecture: str
    num_classes: int
    in_chans: int = 3
    identity: Identity = field(default_factory=Identity)
    base: Identity | None = None
    label_set: str | None = None
    own_names: tuple[str, ...] | None = None
    activation: Activation | None = None
    preprocessing: Preprocessing | None = None
    license: str | None = None
    provenance: Provenance | None = None
    run: RunInfo | None = None
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    refused: Mapping[str, str] = field(default_factory=dict, hash=False)
    path: str | None = field(default=None, compare=False)

    @classmethod
    def of_release(cls, spec: ModelSpec, identity: Identity | None = None) -> ModelInfo:
        """Return what the catalogue knows about a release.

        Args:
            spec: The catalogue's entry.
            identity: How it is known that a model is that release; None for the entry itself.
        """
        identity = identity or Identity(spec.name, "catalogue")
        info = cls(spec.arch_name, spec.num_classes, identity=identity)
        return info.completed_by_catalogue()

    @property
    def spec(self) -> ModelSpec | None:
        """The catalogue entry of the release that the model is."""
        return self.identity.spec

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name per output; None if they are not known. May import timm."""
        return self.names_or_reason()[0]

    def names_or_reason(self) -> tuple[tuple[str, ...] | None, str]:
        """Return the class names, or None and the reason why there are none."""
        if not self.num_classes:
            return None, "The model has no head and therefore no classes."
        if reason := self.refused.get("class_names", ""):
            return None, reason
        if self.own_names is not None:
            names: tuple[str, ...] | None = self.own_names
            reason = ""
        else:
            found, reason = class_names_or_reason(self.label_set)
            names = None if found is None else tuple(found)
            spec = self.spec
            if names is None and spec and spec.label_note:
                reason = spec.label_note
        if names is not None and len(names) != self.num_classes:
            return None, (
                f"The model has {self.num_classes:,} outputs, but {len(names):,} class names are "
                "known."
            )
        return names, reason

    def completed_by_catalogue(self) -> ModelInfo:
        """Fill what is not known from the catalogue entry of the release that the model is.

        The licence is filled only if the identity is established: the catalogue has the licence of
        Google's files, and a file's name does not make it one of them.
        """
        spec = self.spec
        if spec is None:
            return self
        who = f"the catalogue's entry {spec.name}"
        if not self.identity.established:
            who += f" ({self.identity.basis})"
        added: dict[str, Any] = {}
        if spec.num_classes == self.num_classes:
            if self.label_set is None and self.own_names is None and spec.label_set:
                added["label_set"] = spec.label_set
            if self.activation is None:
                added["activation"] = spec.activation
        if self.preprocessing is None and "preprocessing" not in self.refused:
            added["preprocessing"] = spec.preprocessing
        stated = self.identity.established and spec.released and self.base is None
        if self.license is None and stated:
            added["license"] = spec.license
        return replace(self, **added, sources={**self.sources, **dict.fromkeys(added, who)})

    def with_head(self, num_classes: int) -> ModelInfo:
        """Return the record with a new head: what was known about the outputs no longer holds."""
        known = ("label_set", "own_names", "activation", "license", "run")
        sources = {key: who for key, who in self.sources.items() if key not in known}
        return replace(
            self,
            num_classes=num_classes,
            identity=Identity(None, "unknown", "a new head")
            if self.identity.name
            else self.identity,
            base=self.base or (self.identity if self.identity.name else None),
            **dict.fromkeys(known),  # type: ignore[arg-type]
            sources=sources,
            refused={**self.refused, "class_names": _OTHER_HEAD},
        )

    def without_head(self) -> ModelInfo:
        """Return the record of the same weights without their head."""
        known = ("label_set", "own_names", "activation")
        sources = {key: who for key, who in self.sources.items() if key not in known}
        return replace(self, num_classes=0, **dict.fromkeys(known), sources=sources)  # type: ignore[arg-type]

    def stating(self, who: str, **values: Any) -> ModelInfo:
        """Return the record with values that `who` states."""
        return replace(self, **values, sources={**self.sources, **dict.fromkeys(values, who)})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; `from_dict` restores an equal record. None values have no key."""
        record: dict[str, Any] = {
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "in_chans": self.in_chans,
            "identity": asdict(self.identity),
            "base": asdict(self.base) if self.base else None,
            "label_set": self.label_set,
            "own_names": list(self.own_names) if self.own_names is not None else None,
            "activation": self.activation,
            "preprocessing": self.preprocessing.to_dict() if self.preprocessing else None,
            "license": self.license,
            "provenance": self.provenance.to_dict() if self.provenance else None,
            "run": self.run.to_dict() if self.run else None,
            "sources": dict(sorted(self.sources.items())) or None,
        }
        return {key: value for key, value in record.items() if value is not None}

    def to_json(self) -> str:
        """Return one line of JSON, for a file's metadata."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_dict(cls, record: object) -> ModelInfo:
        """Return the record that `to_dict` described.

        Raises:
            CheckpointError: If `record` is something else.
        """
        with damage_reported("model_info", "bitzoo's record about a model", _ADVICE):
            return cls._parsed(record)

    @classmethod
    def _parsed(cls, record: Any) -> ModelInfo:
        names, activation = record.get("own_names"), record.get("activation")
        if activation is not None and activation not in get_args(Activation):
            raise ValueError(
                f"activation {activation!r:.40}, expected {' or '.join(get_args(Activation))}"
            )
        if names is not None and not (
            isinstance(names, list) and all(isinstance(name, str) for name in names)
        ):
            raise ValueError("own_names is not a list of strings")
        texts = {key: record.get(key) for key in ("label_set", "license")}
        if not all(text is None or isinstance(text, str) for text in texts.values()):
            raise ValueError("label_set and license must be strings")
        counts = {"num_classes": record["num_classes"], "in_chans": record.get("in_chans", 3)}
        for key, count in counts.items():
            if type(count) is not int or not 0 <= count <= _MOST:
                raise ValueError(f"{key} is {count!r:.40}, expected 0 to {_MOST:,}")
        if not isinstance(record["architecture"], str):
            raise ValueError(f"architecture is {type(record['architecture']).__name__}, not text")
        return cls(
            architecture=record["architecture"],
            **counts,
            identity=Identity.from_dict(record.get("identity") or {}),
            base=Identity.from_dict(record["base"]) if record.get("base") else None,
            own_names=None if names is None else tuple(names),
            activation=activation,
            preprocessing=_preprocessing(record.get("preprocessing")),
            provenance=Provenance.from_dict(record["provenance"])
            if record.get("provenance")
            else None,
            run=RunInfo.from_dict(record["run"]) if record.get("run") else None,
            sources={str(key): str(who) for key, who in (record.get("sources") or {}).items()},
            **texts,
        )

    def display_rows(self) -> list[tuple[str, str]]:
        """Return readable names and values; what is not known is shown as such."""
        head = f"{self.num_classes:,} classes" if self.num_classes else "no head"
        rows = [
            ("model", str(self.identity)),
            ("network", f"{self.architecture}, {head}"),
            ("class names", self._names_in_words()),
            ("activation", self._with_source("activation", self.activation)),
            ("images", self._images_in_words()),
            ("licence", self._with_source("license", self.license)),
        ]
        if self.base:
            rows.insert(1, ("base", str(self.base)))
        if self.provenance:
            rows.append(("numbers", self._numbers_in_words(self.provenance, self.run is not None)))
        if self.run:
            rows.append(("trained on", self.run.data_in_words))
            rows += [("teacher", teacher.in_words) for teacher in self.run.teachers]
        return rows

    def _with_source(self, key: str, value: str | None) -> str:
        if value is None:
            return "not known"
        who = self.sources.get(key)
        return f"{value} (says {who})" if who else value

    def _names_in_words(self) -> str:
        if self.own_names is not None:
            shown = ", ".join(self.own_names[:4]) + (", ..." if len(self.own_names) > 4 else "")
            return self._with_source("own_names", shown)
        return self._with_source("label_set", self.label_set)

    def _images_in_words(self) -> str:
        if "preprocessing" in self.refused:
            return f"refused: {self.refused['preprocessing']}"
        return self.preprocessing.in_words() if self.preprocessing else "not known"

    @staticmethod
    def _numbers_in_words(made: Provenance, is_trained: bool) -> str:
        changes = [f"rounded from {made.rounded_from} to {made.dtype}"] if made.rounded_from else []
        if made.kernel_scale != 1:
            changes.append(f"kernels x{made.kernel_scale}")
        if made.weights_relative_l2 is not None:
            last = " by the last rounding" if " to " in made.rounded_from else ""
            changes.append(f"weights moved by {made.weights_relative_l2:.1e}{last}")
        place = f", {made.weights}" if made.weights else ""
        if is_trained:  # before or after the conversion: the record does not say
            return ", ".join([f"first converted from {made.source}{place}", *changes])
        return f"from {made.source}{place}, {', '.join(changes) or 'unchanged'}"


def _preprocessing(record: Any) -> Preprocessing | None:
    if record is None:
        return None
    return Preprocessing(
        crop=record["crop"],
        resize=record["resize"],
        interpolation=record["interpolation"],
        square=record["square"],
        source=str(record["source"]),
        bit_depth=record.get("bit_depth"),
    )
