"""Formats that checkpoints can be written in: one row per format, all using one key mapping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bitzoo.converters.dtypes import CHECKPOINT_DTYPES
from bitzoo.converters.formats.keras import MAX_ATTRIBUTE, KerasWriter, rewrite_attributes
from bitzoo.converters.formats.npz import NpzWriter
from bitzoo.converters.formats.safetensors import SafetensorsWriter, rewrite_metadata
from bitzoo.converters.formats.torch import TorchWriter
from bitzoo.converters.key_mapping import layout_of, name_of
from bitzoo.converters.layouts import out_axis, stored_shape
from bitzoo.converters.writer import Place, Writer
from bitzoo.errors import UsageError
from bitzoo.models.architecture import Architecture, Slot

Places = Mapping[str, Place]
Metadata = Mapping[str, str]


@dataclass(frozen=True)
class CheckpointFormat:
    """One format to write.

    Attributes:
        name: Its name, as in the option `to`.
        names: The naming scheme of its tensors, in the key mapping.
        ending: Ending of the names of its files or folders, if none was chosen.
        create: Opens a writer for a path, places, metadata and a number format.
        weights: For a folder, the file with the weights; else empty.
        contents: For a folder, all files in it; else empty.
        copies: Number of files of the output's size that exist at once while it is written.
        readers: The library whose eps `eps_exact` compensates for; empty if it would be wrong.
        halves: Whether it may have numbers of 16 bits, because its readers know what they are.
            Every format may have float64: all readers turn those into float32 by themselves.
        record_bytes: Longest record about the model that it can hold; 0 for none, None for any.
        rewrite: Replaces values in the metadata of a file by others of equal length; None without.
        others: Other endings that its files may have.
        any_form: Whether it can hold and name networks of the paper's ablation: batch
            normalization, or kernels that are not standardized.
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
    rewrite: Callable[[Path, Metadata], None] | None = None
    others: tuple[str, ...] = ()
    any_form: bool = False

    @property
    def endings(self) -> tuple[str, ...]:
        """Endings that a file of it may have; none for a folder, whose name says nothing."""
        return () if self.weights else (self.ending, *self.others)

    @property
    def reads_while_written(self) -> bool:
        """Whether a reader may read blocks back before the file is finished."""
        return self.create is _safetensors

    def require_place_for(self, architecture: Architecture) -> None:
        """Refuse a network that a file of this format would give to its readers as another one.

        Raises:
            UsageError: If it is not of the released form, and the format knows no other.
        """
        reasons = []
        if architecture.norm == "batch":
            reasons.append("has no place for running statistics of batch normalization")
        if not architecture.weight_standardization:
            reasons.append("is for readers that standardize every kernel")
        if reasons and not self.any_form:
            able = " or ".join(row.name for row in _ROWS if row.any_form)
            raise UsageError(
                f"{architecture.name} cannot be written as {self.name}, which "
                f"{' and '.join(reasons)}: the file would be another network. Write {able}, whose "
                "metadata name the architecture."
            )

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
    return NpzWriter(path, places, numbers)


def _h5(path: Path, places: Places, metadata: Metadata, numbers: str) -> Writer:
    return KerasWriter(path, places, metadata, numbers)


def _torch(path: Path, places: Places, metadata: Metadata, numbers: str) -> Writer:
    return TorchWriter(path, {name: place.shape for name, place in places.items()}, numbers)


_ROWS = (
    CheckpointFormat(
        "safetensors",
        "timm",
        ".safetensors",
        _safetensors,
        halves=True,
        rewrite=rewrite_metadata,
        any_form=True,
    ),
    CheckpointFormat("npz", "npz", ".npz", _npz, record_bytes=0),
    CheckpointFormat(
        "h5",
        "keras",
        ".h5",
        _h5,
        record_bytes=MAX_ATTRIBUTE,
        rewrite=rewrite_attributes,
        others=(".hdf5",),
    ),
    CheckpointFormat(
        "timm",
        "timm",
        ".timm.safetensors",
        _safetensors,
        readers="timm",
        halves=True,
        rewrite=rewrite_metadata,
        others=(".safetensors",),
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
        rewrite=rewrite_metadata,
    ),
    CheckpointFormat(
        "bit_pytorch",
        "bit_pytorch",
        ".pth",
        _torch,
        copies=2,
        record_bytes=0,
        others=(".pt", ".bin", ".pth.tar"),
    ),
)

FORMATS: dict[str, CheckpointFormat] = {row.name: row for row in _ROWS}


_EXPORTED = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch-export", ".pb": "savedmodel"}
"""Endings of what `bitzoo export` writes, with its name there."""
_NOT_WRITTEN = (
    *(".ckpt", ".index", ".meta", ".keras", ".tflite", ".npy", ".msgpack", ".pkl", ".gguf"),
    *(".mlmodel", ".mlpackage", ".engine", ".json", ".tar", ".tgz", ".gz", ".zip"),
)
"""Endings that promise something that bitzoo does not write."""


def _ending_of(path: Path, endings: Iterable[str]) -> str:
    """Return the longest of `endings` that a path has, in whatever case; empty for none."""
    name = path.name.lower()
    return max((ending for ending in endings if name.endswith(ending)), key=len, default="")


def choose_format(path: Path | None, to: str | None = None) -> str:
    """Return the format to write to a path: `to`, or the one of its ending, or safetensors.

    Raises:
        UsageError: If `to` is unknown or contradicts the ending, or the ending is one of something
            that bitzoo does not write.
    """
    asked = find_format(to) if to is not None else None
    if path is None or path.is_dir():
        return asked.name if asked else "safetensors"
    known = {ending: row.name for row in reversed(_ROWS) for ending in row.endings}
    ending = _ending_of(path, (*known, *_EXPORTED, *_NOT_WRITTEN))
    if asked and ending and ending not in asked.endings:
        if not asked.endings:
            expected = "which is a folder"
        else:
            expected = f"whose files end in {' or '.join(asked.endings)}"
        raise UsageError(
            f'{path}: the ending {ending} contradicts `to="{asked.name}"`, {expected}. Change one '
            "of them, or leave `to` out to go by the ending."
        )
    if ending in _EXPORTED:
        raise UsageError(
            f"{path}: {ending} is no checkpoint format. For other runtimes, use `bitzoo export "
            f"MODEL --to {_EXPORTED[ending]}`. {_writable()}"
        )
    if ending and ending not in known:
        raise UsageError(f"{path}: bitzoo does not write {ending} files. {_writable()}")
    return asked.name if asked else known.get(ending, "safetensors")


def has_known_ending(path: Path) -> bool:
    """Whether the ending of a path is that of a checkpoint file that can be written."""
    return bool(_ending_of(path, (ending for row in _ROWS for ending in row.endings)))


def _writable() -> str:
    """Return a sentence with what can be written."""
    files = [f"{', '.join(row.endings)} ({row.name})" for row in _ROWS if row.endings]
    folders = [f'a folder (`to="{row.name}"`)' for row in _ROWS if not row.endings]
    return f"It can write {'; '.join([*files, *folders])}."


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
        dtype: ``float32``, ``float16`` or ``bfloat16``: numbers that it has not are rounded, and
            the file's metadata states it. ``float64`` keeps those of a float64 source.
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
        if self.dtype not in CHECKPOINT_DTYPES:
            known = ", ".join(CHECKPOINT_DTYPES)
            raise UsageError(f"`dtype` must be one of {known}, found {self.dtype!r}.")
        if self.itemsize < 4 and not row.halves:
            able = ", ".join(other.name for other in _ROWS if other.halves)
            raise UsageError(
                f'`dtype="{self.dtype}"` is not possible for {row.name} files, which are always '
                f"float32. Write {able} instead, or leave `dtype` out."
            )
        if self.dtype == "float64" and self.eps_exact:
            raise UsageError(
                '`dtype="float64"` keeps the numbers of a float64 source, and `eps_exact` changes '
                "them. Leave one of them out."
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
    def itemsize(self) -> int:
        """Bytes per number of the output."""
        return {"float64": 8, "float32": 4}.get(self.dtype, 2)

    def weights_in(self, path: Path) -> Path:
        """Return the file that has the weights of the output at `path`."""
        return path / self.format.weights if self.format.weights else path
