"""Read and write Google's `.npz` files: zip archives of uncompressed `.npy` members.

`np.load` would suffice for trusted files. This reader never unpickles, bounds every size before it
allocates, and reads slabs of a tensor directly from the file. The standard library reads the zip
directory and compressed members (valid, though never released).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.lib import format as npy

from bitzoo.converters.dtypes import BrainFloatTensor
from bitzoo.converters.formats.big_vision import as_bit_paper, find_prefix, is_brain_float
from bitzoo.converters.formats.foreign import name_members
from bitzoo.converters.formats.zip_members import DAMAGE, CompressedTensor, Unpacked
from bitzoo.converters.source import (
    Array,
    RawFile,
    RawTensor,
    Source,
    StoredTensor,
    brief,
    read_pieces,
)
from bitzoo.converters.writer import Place, SlabWriter
from bitzoo.errors import CheckpointError, damage_reported
from bitzoo.portable import pread

MAX_DIRECTORY_BYTES = 1 << 20
"""Bound on the zip directory; 459 released names need 50 kB. It also bounds the number of headers,
of which parsing 20,000 takes seconds."""
MAX_UNPACKED_BYTES = 16 << 30
"""Bound on the uncompressed size of compressed members; the largest released file has 4.43 GB."""
_PIECE = 1 << 20
_MAX_NAME = 255
_MAX_RANK = 32
_MAX_SIZE = 1 << 62
_HEADER_BYTES = 4_096
_ENCRYPTED = 0x1 | 0x20 | 0x40
"""Flags of members that are encrypted, or patches of other data."""
_UTF8 = 0x800
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""The methods that NumPy writes. `zipfile` unpacks bzip2 unbounded: 2 kB took 6 GB of memory."""
_DTYPES = {np.dtype(code) for code in ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8")}
_RENUMBERED = re.compile(r"/standardized_conv2d_\d+(?=/)", re.ASCII)


class NpzSource(Source):
    """An open `.npz` checkpoint with tensors under Google's names.

    ``standardized_conv2d_<n>``, which some files have, is read as ``standardized_conv2d``
    (as in google-research/big_vision, models/bit_paper.py).

    Raises:
        CheckpointError: If the file is damaged, unsafe or holds anything but float arrays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        self._file = RawFile(path)
        self._bounded = _BoundedFile(path)
        self._members: list[tuple[int, int, zipfile.ZipInfo]] = []
        self._compressed_bytes = 0
        try:
            with damage_reported(path, "an .npz (zip) file"):
                self._zip = self._open_zip()
                self._unpacked = Unpacked(self._zip)
                names = [info.filename.removesuffix(".npy") for info in self._zip.infolist()]
                prefix = find_prefix(path, names)
                skipped = [name for name in names if not name.startswith(prefix)]
                tensors = self._read_headers(prefix)
                self.names, self.tensors, self.notes = as_bit_paper(tensors, prefix, skipped)
        except BaseException:
            self._bounded.close()
            self._file.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the file and check the CRC-32 of every stored member in the same pass.

        Compressed members are checked during decompression.
        """
        digest, position = hashlib.sha256(), 0
        for start, stop, info in self._members:
            self._hash(digest, position, start, advance)
            crc = self._hash(digest, start, stop, advance)
            if info.compress_type == zipfile.ZIP_STORED and crc != info.CRC:
                raise CheckpointError(
                    f"{self.path}: tensor {info.filename!r} is damaged: expected CRC-32 "
                    f"{info.CRC:08x}, found {crc:08x}. Fetch the file again."
                )
            position = stop
        self._hash(digest, position, self.size, advance)
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file and delete the uncompressed members."""
        self._unpacked.close()
        self._zip.close()
        self._bounded.close()
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
            crc = isal_zlib.crc32(piece, crc)  # equals zlib's, several times faster
            if advance:
                advance(len(piece))
        return crc

    def _open_zip(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._bounded)
        except CheckpointError:
            raise
        except DAMAGE as error:
            raise CheckpointError(
                f"{self.path}: expected an .npz (zip) file, but its directory cannot be read "
                f"({brief(error)}). It is truncated or damaged; fetch it again."
            ) from error

    def _read_headers(self, prefix: str) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        members = self._zip.namelist()
        if not any(name.endswith(".npy") for name in members) and members:
            what, advice = name_members(members)
            raise CheckpointError(
                f"{self.path}: expected only arrays (.npy), found a member named "
                f"{brief(repr(members[0]))}. This is {what}. {advice}"
            )
        for info in self._zip.infolist():
            name = _tensor_name(self.path, info)
            if not name.startswith(prefix):  # checked, not read
                offset = _data_offset(self._file, info)
                self._members.append((offset, offset + info.compress_size, info))
                continue
            if name in tensors:
                raise CheckpointError(
                    f"{self.path}: expected each name once, found two tensors named {name!r}. "
                    "The file is damaged or was tampered with."
                )
            tensors[name] = self._read_header(name, info)
        self._check_overlap()
        unpacked = self._compressed_bytes
        if unpacked > MAX_UNPACKED_BYTES:
            raise CheckpointError(
                f"{self.path}: its compressed tensors have {unpacked:,} bytes uncompressed, "
                f"expected at most {MAX_UNPACKED_BYTES:,}. Save it again with numpy.savez."
            )
        return tensors

    def _check_overlap(self) -> None:
        self._members.sort(key=lambda member: member[:2])
        for (_, stop, first), (start, _, second) in pairwise(self._members):
            if start < stop:
                raise CheckpointError(
                    f"{self.path}: expected separate bytes for each tensor, found "
                    f"{first.filename!r} and {second.filename!r} overlapping. "
                    "Do not load this file."
                )

    def _read_header(self, name: str, info: zipfile.ZipInfo) -> StoredTensor:
        offset = _data_offset(self._file, info)
        self._members.append((offset, offset + info.compress_size, info))
        stored = info.compress_type == zipfile.ZIP_STORED
        try:
            if stored:
                head = self._file.read(offset, min(_HEADER_BYTES, info.file_size))
            else:
                with self._zip.open(info) as member:
                    head = member.read(_HEADER_BYTES)
            shape, fortran, dtype, start = _parse_header(head)
        except DAMAGE as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has no readable .npy header ({brief(error)}). "
                "The file is damaged; fetch it again."
            ) from error
        halves = is_brain_float(dtype)
        dtype = np.dtype("<u2") if halves else dtype
        _check_tensor(self.path, name, info, shape, dtype, start, known=halves)
        tensor: RawTensor | CompressedTensor
        if stored:
            tensor = RawTensor(name, shape, dtype, self._file, offset + start, fortran)
        else:
            tensor = CompressedTensor(name, shape, dtype, self._unpacked, info, start, fortran)
            self._compressed_bytes += tensor.nbytes
        return BrainFloatTensor(tensor) if halves else tensor


class _BoundedFile(io.FileIO):
    """Bounds the reads of `zipfile`, which allocates any directory size that a file claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read from the file, but at most `MAX_DIRECTORY_BYTES` at once."""
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise CheckpointError(
                f"{os.fspath(self.name)}: its zip directory claims {size:,} bytes, expected at "
                f"most {MAX_DIRECTORY_BYTES:,}. This is not a BiT checkpoint."
            )
        return super().read(-1 if size is None else size) or b""


class NpzWriter(SlabWriter):
    """Writes an `.npz` as NumPy does: uncompressed `.npy` members, in the given order.

    Members are written at their final positions; `finish` reads them once for their checksums.
    """

    def __init__(self, path: Path, places: Mapping[str, Place], dtype: str = "float32") -> None:
        """Reserve the file at its full size.

        Args:
            path: File to write; truncated if it exists.
            places: Name, shape and output axis of every tensor; offsets are ignored.
            dtype: Dtype of the blocks given to `write`: ``float32`` or ``float64``.
        """
        number = np.dtype(dtype).newbyteorder("<")
        self._members: list[tuple[zipfile.ZipInfo, bytes]] = []
        placed, position = {}, 0
        for name, place in places.items():
            head = io.BytesIO()
            described = {"descr": number.str, "fortran_order": False, "shape": place.shape}
            npy.write_array_header_1_0(head, described)
            info = zipfile.ZipInfo(f"{name}.npy")
            info.header_offset, info.CRC = position, 0
            size = number.itemsize * math.prod(place.shape)
            info.file_size = info.compress_size = len(head.getvalue()) + size
            self._members.append((info, head.getvalue()))
            position += len(info.FileHeader(zip64=True)) + len(head.getvalue())
            placed[name] = replace(place, offset=position)
            position += size
        self._end = position
        super().__init__(path, placed, number.itemsize, position)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the members' headers and the zip directory, and close; metadata is not stored."""
        with zipfile.ZipFile(self._file, "w") as archive:
            for info, head in self._members:
                position = info.header_offset + len(info.FileHeader(zip64=True))
                self._put(head, position)
                info.CRC = self._crc(position, position + info.file_size)
                self._put(info.FileHeader(zip64=True), info.header_offset)
                archive.filelist.append(info)
            archive.start_dir = self._end  # the position where close() writes the directory
        self.close()

    def _crc(self, start: int, stop: int) -> int:
        crc = 0
        for position in range(start, stop, _PIECE):
            crc = zlib.crc32(
                pread(self._file.fileno(), min(_PIECE, stop - position), position), crc
            )
        return crc


def write_npz(path: Path, tensors: Iterable[tuple[str, Array]]) -> None:
    """Write float32 arrays like Google's files: one uncompressed `.npy` member per name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in tensors:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, np.ascontiguousarray(array, "<f4"), allow_pickle=False)


def _tensor_name(path: Path, info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not (name.isascii() and name.isprintable() and name.endswith(".npy")):
        raise CheckpointError(
            f"{path}: expected only arrays (.npy), found a member named {name[:_MAX_NAME]!r}. "
            "This is a zip file, but not an .npz checkpoint."
        )
    if len(name) > _MAX_NAME:
        raise CheckpointError(
            f"{path}: a tensor's name has {len(name):,} characters ({name[:40]!r}...), expected at "
            f"most {_MAX_NAME}. This is not a BiT checkpoint."
        )
    if info.flag_bits & _ENCRYPTED:
        raise CheckpointError(
            f"{path}: tensor {name!r} is encrypted or a patch, expected plain data. Decrypt the "
            "file first."
        )
    if info.compress_type not in _METHODS:
        raise CheckpointError(
            f"{path}: tensor {name!r} is compressed by method {info.compress_type}, expected "
            "stored or deflated data, as NumPy writes. Save it again with numpy.savez."
        )
    return _RENUMBERED.sub("/standardized_conv2d", name.removesuffix(".npy"))


def _data_offset(file: RawFile, info: zipfile.ZipInfo) -> int:
    """Return the position of a member's data, which depends on the length of its header."""
    position = info.header_offset
    header = file.read(position, 30) if 0 <= position < file.size else b""
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise CheckpointError(
            f"{file.path}: tensor {info.filename!r} is not at the position in the zip directory. "
            "The file is truncated or damaged; fetch it again."
        )
    name_size, extra_size = struct.unpack_from("<HH", header, 26)
    if _name_at(file, info, position + 30, name_size) != info.orig_filename:
        raise CheckpointError(
            f"{file.path}: tensor {info.filename!r} has another name at its position in the file "
            "than in the zip directory. The file is damaged; fetch it again."
        )
    offset = position + 30 + int(name_size) + int(extra_size)
    inflated = info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size
    if inflated or offset + info.compress_size > file.size:
        raise CheckpointError(
            f"{file.path}: tensor {info.filename!r} claims {info.file_size:,} bytes, more than "
            "the file has there. It is truncated or damaged; fetch it again."
        )
    return offset


def _name_at(file: RawFile, info: zipfile.ZipInfo, position: int, size: int) -> str:
    """Return the name in a member's own header, in the encoding that the directory states."""
    encoding = "utf-8" if info.flag_bits & _UTF8 else "cp437"
    return file.read(position, size).decode(encoding, errors="replace")


def _parse_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, order, dtype and the position of the data.

    Raises:
        ValueError: If the header is malformed in any way.
    """
    stream = io.BytesIO(head)
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"unknown .npy version {version}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote
            shape, fortran, dtype = readers[version](stream)
    except Exception as error:  # Python's parser raises many kinds
        raise ValueError(f"malformed header: {error}") from error
    if len(shape) > _MAX_RANK or not all(type(n) is int and 0 <= n < _MAX_SIZE for n in shape):
        raise ValueError(f"an impossible shape of {len(shape)} dimensions")
    return shape, fortran, dtype, stream.tell()


def _check_tensor(
    path: Path,
    name: str,
    info: zipfile.ZipInfo,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    start: int,
    *,
    known: bool,
) -> None:
    if dtype.hasobject:
        raise CheckpointError(
            f"{path}: tensor {name!r} holds pickled Python objects, which could run code; "
            "expected plain float numbers. Do not load this file."
        )
    if dtype not in _DTYPES and not known:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {brief(dtype)}, expected float32 (float16 and "
            "float64 are converted). This is not a BiT checkpoint."
        )
    expected = start + math.prod(shape) * dtype.itemsize
    if info.file_size != expected:
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {shape} needs {expected:,} bytes, found "
            f"{info.file_size:,}. The file is truncated or damaged; fetch it again."
        )
