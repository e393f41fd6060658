"""Formats that checkpoints can be written in: one row per format, all using one key mapping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bitzoo.converters.dtypes import DTYPES
from bitzoo.converters.formats.keras import MAX_ATTRIBUTE, KerasWriter
from bitzoo.converters.formats.npz import NpzWriter
from bitzoo.converters.formats.safetensors import SafetensorsWriter
from bitzoo.converters.formats.torch import TorchWriter
from bitzoo.converters.key_mapping import layout_of, name_of
from bitzoo.converters.layouts import out_axis, stored_shape
from bitzoo.converters.writer import Place, Writer
from bitzoo.errors import UsageError
from bitzoo.models.architecture import Slot

Places = Mapping[str, Place]
Metadata = Mapping[str, str]


@dataclass(frozen=True)
class CheckpointFormat:
    """One format to write.

    Attributes:
        name: Its name, as in the option `to`.
        names: The naming scheme of its tensors, in the key mapping.
        ending: Ending of the names of its files or folders.
        create: Opens a writer for a path, places, metadata and a number format.
        weights: For a folder, the file with the weights; else empty.
        contents: For a folder, all files in it; else empty.
        copies: Number of files of the output's size that exist at once while it is written.
        readers: The library whose eps `eps_exact` compensates for; empty if it would be wrong.
        halves: Whether it may have numbers other than float32, because it can state their dtype.
        record_bytes: Longest record about the model that it can hold; 0 for none, None for any.
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
    record_bytes: int | None = None

    @property
    def reads_while_written(self) -> bool:
        """Whether a reader may read blocks back before the file is finished."""
        return self.create is _safetensors

    def places(self, shapes: Mapping[Slot, tuple[int, ...]]) -> dict[str, Place]:
        """Return every tensor's name, stored shape and output axis; the writer sets the offsets.

        Args:
            shapes: Slot -> OIHW shape.
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
    CheckpointFormat("npz", "npz", ".npz", _npz, record_bytes=0),
    CheckpointFormat("h5", "keras", ".h5", _h5, record_bytes=MAX_ATTRIBUTE),
    CheckpointFormat(
        "timm", "timm", ".timm.safetensors", _safetensors, readers="timm", halves=True
    ),
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
    CheckpointFormat("bit_pytorch", "bit_pytorch", ".pth", _torch, copies=2, record_bytes=0),
)

FORMATS: dict[str, CheckpointFormat] = {row.name: row for row in _ROWS}


def find_format(name: str) -> CheckpointFormat:
    """Return a format by its name.

    Raises:
        UsageError: If there is none; the message lists them.
    """
    if name not in FORMATS:
        raise UsageError(f"`to` must be one of {', '.join(FORMATS)}, found {name!r}.")
    return FORMATS[name]


@dataclass(frozen=True)
class Target:
    """What to write.

    Attributes:
        to: A name in `FORMATS`; ``safetensors`` is bitzoo's own form, with timm's names.
        dtype: ``float32``, or ``float16`` or ``bfloat16`` to round the numbers; the file's metadata
            states it.
        eps_exact: For timm and transformers, whose eps differs from the release's: whether to
            multiply the standardized kernels by `EPS_EXACT_SCALE`, so that they compute the
            released function. For inference only.

    Raises:
        UsageError: If there is no such format, or it does not support the options.
    """

    to: str = "safetensors"
    dtype: str = "float32"
    eps_exact: bool = False

    def __post_init__(self) -> None:
        row = find_format(self.to)
        if self.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise UsageError(f"`dtype` must be one of {known}, found {self.dtype!r}.")
        if self.dtype != "float32" and not row.halves:
            able = ", ".join(other.name for other in _ROWS if other.halves)
            raise UsageError(
                f'`dtype="{self.dtype}"` is not possible for {row.name} files, which are always '
                f"float32. Write {able} instead, or leave `dtype` out."
            )
        if self.eps_exact and not row.readers:
            able = " and ".join(other.name for other in _ROWS if other.readers)
            raise UsageError(
                f"`eps_exact` compensates for the eps of {able}, but {row.name} files are read by "
                "code with Google's eps. Use it only to write timm or transformers."
            )

    @property
    def format(self) -> CheckpointFormat:
        """The row of `FORMATS`."""
        return FORMATS[self.to]

    @property
    def is_exact(self) -> bool:
        """Whether the output has exactly the numbers of the source."""
        return self.dtype == "float32" and not self.eps_exact

    def weights_in(self, path: Path) -> Path:
        """Return the file that has the weights of the output at `path`."""
        return path / self.format.weights if self.format.weights else path
