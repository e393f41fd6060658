"""What a trained model was trained on, how, and by whom it was taught, as a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["RunInfo", "TeacherInfo"]


@dataclass(frozen=True)
class TeacherInfo:
    """A network whose outputs a distilled model learned to give.

    Attributes:
        name: What the user called it: a catalogue name, a path or an address.
        sha256: SHA-256 of the file that its weights were read from.
        architecture: Name of its architecture.
        identity: Which release it is, and how that is known, as a phrase.
        dtype: Dtype that it computed in.
    """

    name: str
    sha256: str
    architecture: str
    identity: str
    dtype: str

    @property
    def in_words(self) -> str:
        """The teacher as a phrase."""
        file = f"weights file with SHA-256 {self.sha256}"
        return f"{self.name} ({self.architecture}; {self.identity}; {file}), in {self.dtype}"

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TeacherInfo:
        """Return the teacher that `dataclasses.asdict` described."""
        return cls(
            name=str(record["name"]),
            sha256=str(record["sha256"]),
            architecture=str(record["architecture"]),
            identity=str(record["identity"]),
            dtype=str(record["dtype"]),
        )


HELD_OUT = "held_out"
"""Key in `RunInfo.split`: how images were held out."""


@dataclass(frozen=True)
class RunInfo:
    """What a trained model was trained on, and how.

    Attributes:
        data: The data set as the user named it.
        fingerprint: SHA-256 over its classes, examples and contents.
        split: Number of images by split, and how images were held out.
        recipe: The recipe, as `Recipe.to_dict` gives it.
        seed: Seed of everything random.
        teachers: Of a distilled model, those that it learned from; their logits were averaged. The
            recipe has the temperature.
    """

    data: str
    fingerprint: str
    split: Mapping[str, Any]
    recipe: Mapping[str, Any]
    seed: int
    teachers: tuple[TeacherInfo, ...] = ()

    @property
    def data_in_words(self) -> str:
        """The data set with its numbers of images: "photos (train 540, val 60; held out: ...)"."""
        counts = ", ".join(
            f"{name.replace('_', ' ')} {count:,}"
            for name, count in self.split.items()
            if type(count) is int
        )
        held_out = self.split.get(HELD_OUT)
        parts = [*filter(None, [counts]), *([f"held out: {held_out}"] if held_out else [])]
        return f"{self.data} ({'; '.join(parts)})" if parts else self.data

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; without teachers there is no key for them."""
        record = asdict(self)
        teachers = list(record.pop("teachers"))
        return record | ({"teachers": teachers} if teachers else {})

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> RunInfo:
        """Return the run that `to_dict` described."""
        return cls(
            data=str(record["data"]),
            fingerprint=str(record["fingerprint"]),
            split=dict(record["split"]),
            recipe=dict(record["recipe"]),
            seed=int(record["seed"]),
            teachers=tuple(map(TeacherInfo.from_dict, record.get("teachers", ()))),
        )
