"""Read tensors from compressed members of a zip file, by decompressing them to disk first."""

from __future__ import annotations

import shutil
import struct
import tempfile
import threading
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from bitzoo.converters.source import Array, RawFile, RawTensor, Scratch, StoredTensor, brief
from bitzoo.errors import CheckpointError
from bitzoo.files import temporary_folder

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)
"""Raised by `zipfile` for damaged files, unknown versions (a RuntimeError) and bad positions."""


class Unpacked:
    """An unnamed temporary file to which compressed members are decompressed, each once."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._lock = threading.Lock()
        self._positions: dict[str, int] = {}
        self._writer: IO[bytes] | None = None
        self._reader: RawFile | None = None

    def locate(self, info: zipfile.ZipInfo) -> tuple[RawFile, int]:
        """Return the file and the position of a member's first byte in it."""
        with self._lock:
            if self._reader is None or self._writer is None:
                try:
                    with temporary_folder() as folder:  # so that a killed process leaves no file
                        self._writer = open(folder / "unpacked", "xb")  # noqa: SIM115 - see close()
                        self._reader = RawFile(folder / "unpacked")
                except OSError as error:
                    raise no_space_to_unpack(self._archive.filename, error) from error
            if info.filename not in self._positions:
                self._positions[info.filename] = self._unpack(info, self._writer)
            return self._reader, self._positions[info.filename]

    def close(self) -> None:
        """Delete the temporary file."""
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None:
            with suppress(OSError):  # such as a full disk, which `locate` has reported
                self._writer.close()

    def _unpack(self, info: zipfile.ZipInfo, writer: IO[bytes]) -> int:
        start = writer.tell()
        try:
            with self._archive.open(info) as member:  # checks the CRC-32 at its end
                shutil.copyfileobj(member, writer, 1 << 20)
            writer.flush()
            size = writer.tell() - start
            if size != info.file_size:
                raise ValueError(f"expected {info.file_size:,} bytes, found {size:,}")
        except OSError as error:
            raise no_space_to_unpack(self._archive.filename, error) from error
        except DAMAGE as error:
            raise CheckpointError(
                f"{self._archive.filename}: tensor {info.filename!r} cannot be unpacked "
                f"({brief(error)}). The file is damaged; fetch it again."
            ) from error
        return start


@dataclass(frozen=True)
class CompressedTensor(StoredTensor):
    """A compressed member, decompressed when it is first read."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unpacked: Unpacked
    info: zipfile.ZipInfo
    start: int
    fortran: bool

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Read a slab of the decompressed member."""
        file, position = self.unpacked.locate(self.info)
        raw = RawTensor(
            self.name, self.shape, self.dtype, file, position + self.start, self.fortran
        )
        return raw.read_slab(axis, start, stop, scratch)


def no_space_to_unpack(path: object, error: OSError) -> CheckpointError:
    """Return the error that says what to do if compressed tensors cannot be written to disk."""
    return CheckpointError(
        f"{path}: its compressed tensors cannot be unpacked to {tempfile.gettempdir()} "
        f"({error.strerror or error}). Set TMPDIR to a folder with enough space for all of them."
    )
