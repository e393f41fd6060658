"""What a checkpoint can be written as: one row a format, all through the one name table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bitzoo.models.architecture import Slot
from bitzoo.converters.formats.keras import KerasWriter
from bitzoo.converters.layouts import out_axis, stored_shape
from bitzoo.converters.key_mapping import layout_of, name_of
from bitzoo.converters.formats.npz import NpzWriter
from bitzoo.converters.dtypes import NUMBER_FORMATS
from bitzoo.converters.formats.safetensors import SafetensorsWriter
from bitzoo.converters.writer import Place, Writer
from bitzoo.converters.formats.torch import TorchWriter
from bitzoo.errors import UsageError

Places = Mapping[str, Place]
Metadata = Mapping[str, str]


@dataclass(frozen=True)
class CheckpointFormat:
    """One way to write a checkpoint.

    Attributes:
        name: What `--to` calls it.
        names: Its column of the name table.
        ending: What its files' names end in; of a folder, its name.
        create: Opens a writer for a path, places, metadata and a number format.
        weights: In a folder, the file that has the weights; else empty.
        contents: In a folder, all files that it holds; else empty.
        copies: Files as large as the output that are there at once while it is written.
        readers: Whose eps `eps_exact` fits; empty where it would be wrong.
        halves: Whether it may have other numbers than float32: whether it can say so.
    """

    name: str
    names: str
    ending: str
    create: Callable[[Path, Places, Metadata, str], Writer]
    weights: str = ""
    contents: tuple[str, ...] = ()
    copies: int = 1
    readers: str = ""
    halves: bool = False

    @property
    def reads_while_written(self) -> bool:
        """Whether a reader may read blocks back before the file is finished."""
        return self.create is _safetensors

    def places(self, shapes: Mapping[Slot, tuple[int, ...]]) -> dict[str, Place]:
        """Return every tensor's name, stored shape and axis of outputs; offsets are the writer's.

        Args:
            shapes: Slot to OIHW shape.
        """
        places = {}
        for slot, shape in shapes.items():
            layout = layout_of(slot.role, self.names)
            stored = stored_shape(shape, layout)
            places[name_of(slot, self.names)] = Place(0, stored, out_axis(layout, len(stored)))
        return places


def _safetensors(path: Path, places: Places, metadata: Metadata, numbers: str) -> Writer:
    shapes = {name: place.shape for name, place in places.items()}
    return SafetensorsWriter(path, shapes, metadata, numbers)


def _npz(path: Path, places: Places, metadata: Metadata, numbers: str) -> Writer:
    return NpzWriter(path, places)


def _h5(path: Path, places: Places, metadata: Metadata, numbers: str) -> Writer:
    return KerasWriter(path, places, metadata)


def _torch(path: Path, places: Places, metadata: Metadata, numbers: str) -> Writer:
    return TorchWriter(path, {name: place.shape for name, place in places.items()})


_ROWS = (
    CheckpointFormat("safetensors", "timm", ".safetensors", _safetensors, halves=True),
    CheckpointFormat("npz", "npz", ".npz", _npz),
    CheckpointFormat("h5", "keras", ".h5", _h5),
    CheckpointFormat("timm", "timm", ".timm.safetensors", _safetensors, readers="timm", halves=True),
    CheckpointFormat(
        "transformers",
        "transformers",
        "-transformers",
        _safetensors,
        weights="model.safetensors",
        contents=("model.safetensors", "config.json", "preprocessor_config.json"),
        readers="transformers",
        halves=True,
    ),
    CheckpointFormat("bit_pytorch", "bit_pytorch", ".pth", _torch, copies=2),
)

FORMATS: dict[str, CheckpointFormat] = {row.name: row for row in _ROWS}


def find_format(name: str) -> CheckpointFormat:
    """Return a format by its name.

    Raises:
        UsageError: If there is none; the message lists them.
    """
    if name not in FORMATS:
        raise UsageError(f"{name!r} is no format to write; there are {', '.join(FORMATS)}.")
    return FORMATS[name]


def check_numbers(target: CheckpointFormat, number_format: str, *, eps_exact: bool) -> None:
    """Refuse what a format cannot hold, or could not say of itself.

    Raises:
        UsageError: Names the formats that can.
    """
    if number_format not in NUMBER_FORMATS:
        known = ", ".join(NUMBER_FORMATS)
        raise UsageError(f"{number_format!r} is no number format; there are {known}.")
    if number_format != "float32" and not target.halves:
        able = ", ".join(row.name for row in _ROWS if row.halves)
        raise UsageError(
            f"--dtype {number_format}: {target.name} files are float32 and have no place to say "
            f"otherwise; {able} have. Choose one of these, or leave --dtype out."
        )
    if eps_exact and not target.readers:
        able = " and ".join(row.name for row in _ROWS if row.readers)
        raise UsageError(
            f"--eps-exact makes up for the eps of {able}, but {target.name} files are read by code "
            "that has Google's. Use it with --to timm or --to transformers."
        )
