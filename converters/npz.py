"""Google's `.npz` files: a zip of stored `.npy` members, read by position and never unpickled.

`np.load` would do for a file one trusts. This reader bounds every size before it allocates, reads
slabs of a tensor straight from the file, and leaves compressed members (legal, never released) to
the standard library.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import shutil
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from bitzoo.converters.tensors import (
    Array,
    RawFile,
    RawTensor,
    Scratch,
    Source,
    StoredTensor,
    read_pieces,
)
from bitzoo.errors import CheckpointError

MAX_DIRECTORY_BYTES = 4 << 20
"""Bound on the zip directory; 459 released names need 50 kB."""
MAX_UNPACKED_BYTES = 16 << 30
"""Bound on what compressed members may unpack to; the largest released file has 4.43 GB."""
_HEADER_BYTES = 10_240
_END_BYTES = 65_535 + 22
_ZIP64_LOCATOR_BYTES = 20
_ENCRYPTED = 0x1
_DTYPES = {np.dtype(code) for code in ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8")}
_RENUMBERED = re.compile(r"/standardized_conv2d_\d+(?=/)", re.ASCII)


class NpzSource(Source):
    """An open `.npz` checkpoint with tensors under Google's names.

    ``standardized_conv2d_<n>``, which some files carry, is read as ``standardized_conv2d``
    (as google-research/big_vision, models/bit_paper.py, does).

    Raises:
        CheckpointError: If the file is damaged, unsafe or holds anything but float arrays.
    """

    names = "npz"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        self._file = RawFile(path)
        try:
            self._zip = self._open_zip()
            self._stored: list[tuple[int, int, zipfile.ZipInfo]] = []
            self.tensors = self._read_headers()
        except BaseException:
            self._file.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the file and check the CRC-32 of every stored member in the same pass.

        Members that are compressed are checked while they are unpacked.
        """
        digest, position = hashlib.sha256(), 0
        for start, stop, info in self._stored:
            self._hash(digest, position, start, advance)
            crc = self._hash(digest, start, stop, advance)
            if crc != info.CRC:
                raise CheckpointError(
                    f"{self.path}: tensor {info.filename!r} is damaged: the file says CRC-32 "
                    f"{info.CRC:08x}, its bytes give {crc:08x}. Fetch the file again."
                )
            position = stop
        self._hash(digest, position, self.size, advance)
        return digest.hexdigest()

    def close(self) -> None:
        """Release the file and whatever was unpacked from it."""
        for tensor in self.tensors.values():
            if isinstance(tensor, _PackedTensor):
                tensor.close()
        self._zip.close()
        self._file.close()

    def _hash(
        self,
        digest: hashlib._Hash,
        start: int,
        stop: int,
        advance: Callable[[int], None] | None,
    ) -> int:
        crc = 0
        for piece in read_pieces(self._file, start, stop):
            digest.update(piece)
            crc = zlib.crc32(piece, crc)
            if advance:
                advance(len(piece))
        return crc

    def _open_zip(self) -> zipfile.ZipFile:
        directory = _directory_bytes(self._file)
        if directory > MAX_DIRECTORY_BYTES:
            raise CheckpointError(
                f"{self.path}: its zip directory claims {directory:,} bytes, expected at most "
                f"{MAX_DIRECTORY_BYTES:,}. This is no BiT checkpoint."
            )
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, ValueError, EOFError, struct.error, OverflowError) as error:
            raise CheckpointError(
                f"{self.path}: expected an .npz (zip) file, but its directory cannot be read "
                f"({error}). It is truncated or damaged; fetch it again."
            ) from error

    def _read_headers(self) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        for info in self._zip.infolist():
            name = _tensor_name(self.path, info)
            if name in tensors:
                raise CheckpointError(
                    f"{self.path}: two tensors are called {name!r}; expected each name once. "
                    "The file is damaged or was tampered with."
                )
            tensors[name] = self._read_header(name, info)
        self._check_overlap()
        unpacked = sum(t.nbytes for t in tensors.values() if isinstance(t, _PackedTensor))
        if unpacked > MAX_UNPACKED_BYTES:
            raise CheckpointError(
                f"{self.path}: its compressed tensors would unpack to {unpacked:,} bytes, "
                f"expected at most {MAX_UNPACKED_BYTES:,}. Save it again with numpy.savez."
            )
        return tensors

    def _check_overlap(self) -> None:
        self._stored.sort(key=lambda entry: entry[0])
        for (_, stop, first), (start, _, second) in pairwise(self._stored):
            if start < stop:
                raise CheckpointError(
                    f"{self.path}: tensors {first.filename!r} and {second.filename!r} share "
                    "bytes of the file; expected each to have its own. Do not load this file."
                )

    def _read_header(self, name: str, info: zipfile.ZipInfo) -> StoredTensor:
        stored = info.compress_type == zipfile.ZIP_STORED
        offset = _data_offset(self._file, info) if stored else 0
        try:
            if stored:
                head = self._file.read(offset, min(_HEADER_BYTES, info.file_size))
            else:
                with self._zip.open(info) as member:
                    head = member.read(_HEADER_BYTES)
            shape, fortran, dtype, start = _parse_header(head)
        except (ValueError, EOFError, zlib.error, OSError, RuntimeError, NotImplementedError) as e:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has no readable .npy header ({e}). "
                "The file is damaged; fetch it again."
            ) from e
        _check_tensor(self.path, name, info, shape, dtype, start)
        if not stored:
            return _PackedTensor(name, shape, dtype, self._zip, info, start, fortran)
        self._stored.append((offset, offset + info.file_size, info))
        return RawTensor(name, shape, dtype, self._file, offset + start, fortran)


class _PackedTensor(StoredTensor):
    """A compressed member, unpacked to an unnamed temporary file when first read."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        archive: zipfile.ZipFile,
        info: zipfile.ZipInfo,
        start: int,
        fortran: bool,
    ) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self._archive, self._info, self._start, self._fortran = archive, info, start, fortran
        self._lock = threading.Lock()
        self._unpacked: RawTensor | None = None

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Read a slab of the unpacked member."""
        with self._lock:
            if self._unpacked is None:
                self._unpacked = self._unpack()
        return self._unpacked.read_slab(axis, start, stop, scratch)

    def close(self) -> None:
        """Free the temporary file."""
        if self._unpacked is not None:
            self._unpacked.file.close()

    def _unpack(self) -> RawTensor:
        with tempfile.NamedTemporaryFile(prefix="bitzoo-") as file:
            try:
                with self._archive.open(self._info) as member:  # checks the CRC-32 at its end
                    shutil.copyfileobj(member, file, 1 << 20)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
                raise CheckpointError(
                    f"{self._archive.filename}: tensor {self.name!r} cannot be unpacked "
                    f"({error}). The file is damaged; fetch it again."
                ) from error
            file.flush()
            raw = RawFile(Path(file.name))
        return RawTensor(self.name, self.shape, self.dtype, raw, self._start, self._fortran)


def write_npz(path: Path, tensors: Iterable[tuple[str, Array]]) -> None:
    """Write names and float32 arrays as Google's files hold them: one stored `.npy` member each."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in tensors:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, np.ascontiguousarray(array, "<f4"), allow_pickle=False)


def _directory_bytes(file: RawFile) -> int:
    """Return what the zip's end record says of its directory's size; 0 if it has none."""
    start = max(0, file.size - _END_BYTES - _ZIP64_LOCATOR_BYTES)
    tail = file.read(start, file.size - start)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 16:
        return 0
    (size,) = struct.unpack_from("<L", tail, end + 12)
    locator = end - _ZIP64_LOCATOR_BYTES
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        (record,) = struct.unpack_from("<Q", tail, locator + 8)
        header = file.read(min(record, file.size), 48)
        if len(header) == 48:
            (size,) = struct.unpack_from("<Q", header, 40)
    return int(size)


def _tensor_name(path: Path, info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not (name.isascii() and name.isprintable() and name.endswith(".npy")):
        raise CheckpointError(
            f"{path}: found a member called {name!r}; expected only arrays (.npy). "
            "This is a zip file, but no .npz checkpoint."
        )
    if info.flag_bits & _ENCRYPTED:
        raise CheckpointError(f"{path}: tensor {name!r} is encrypted; expected plain data.")
    return _RENUMBERED.sub("/standardized_conv2d", name.removesuffix(".npy"))


def _data_offset(file: RawFile, info: zipfile.ZipInfo) -> int:
    header = file.read(info.header_offset, 30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise CheckpointError(
            f"{file.path}: tensor {info.filename!r} is not where the zip directory says. "
            "The file is truncated or damaged; fetch it again."
        )
    name_size, extra_size = struct.unpack_from("<HH", header, 26)
    offset = info.header_offset + 30 + int(name_size) + int(extra_size)
    if info.file_size != info.compress_size or offset + info.file_size > file.size:
        raise CheckpointError(
            f"{file.path}: tensor {info.filename!r} claims {info.file_size:,} bytes, more than "
            "the file holds there. It is truncated or damaged; fetch it again."
        )
    return offset


def _parse_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    stream = io.BytesIO(head)
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"unknown .npy version {version}")
    try:
        shape, fortran, dtype = readers[version](stream)
    except (TypeError, SyntaxError, MemoryError, RecursionError, KeyError, AttributeError) as error:
        raise ValueError(f"malformed header: {error}") from error
    return shape, fortran, dtype, stream.tell()


def _check_tensor(
    path: Path,
    name: str,
    info: zipfile.ZipInfo,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    start: int,
) -> None:
    if dtype.hasobject:
        raise CheckpointError(
            f"{path}: tensor {name!r} holds pickled Python objects, which could run code; "
            "expected plain float numbers. Do not load this file."
        )
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {dtype}, expected float32 (float16 and float64 "
            "are converted)."
        )
    expected = start + math.prod(shape) * dtype.itemsize
    if any(size < 0 for size in shape) or info.file_size != expected:
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {shape} needs {expected:,} bytes, found "
            f"{info.file_size:,}. The file is truncated or damaged; fetch it again."
        )
