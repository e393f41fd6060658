"""The interface to an open checkpoint: named tensors that stay in their file until they are read.

The readers in `formats` turn a file into a `Source`; this module is independent of formats. A
tensor is read in slabs along one axis, so that memory is bounded by a block and not by a tensor
(the largest released one has 683 MiB).
"""

from __future__ import annotations

import math
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitzoo.errors import CheckpointError
from bitzoo.portable import pread, preadv

Array = NDArray[Any]

KERNEL_SCALE = "kernel_scale"
"""Key in a file's metadata."""
EPS_EXACT_SCALE = 10
"""Its square is the ratio of timm's and transformers' eps, 1e-8, to the release's, 1e-10: with
kernels scaled by it, their networks compute the released function."""

_HASH_BYTES = 1 << 20
_ROW_PADDING = 64
"""Bytes between the rows of a strided slab. Rows whose distance is a power of two fall into the
same few cache sets, and transposing them runs at a third of the speed (measured)."""


class Scratch:
    """Memory that a thread reuses; fresh pages cost more than the copy into them."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes; their previous contents are lost."""
        if self._bytes.size < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size]

    def array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an uninitialised contiguous array in this memory."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        view: Array = self.take(size).view(dtype).reshape(shape)
        return view


class RawFile:
    """A file read by position, from any thread.

    Pages are copied, not mapped: if a mapped file is truncated or its disk fails, the process is
    killed, while a read reports an error. Only a file private to this process may be mapped.
    """

    def __init__(self, path: Path, *, own: bool = False) -> None:
        self.path, self.own = path, own
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self.size = os.fstat(self._file.fileno()).st_size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes at `offset`.

        Raises:
            CheckpointError: If the file ends before the buffer is full, or its disk fails.
        """
        done = 0
        while done < len(buffer):
            with self._failures_reported():
                count = preadv(self._file.fileno(), [buffer[done:]], offset + done)
            if not count:
                raise CheckpointError(
                    f"{self.path}: the file ends at byte {offset + done:,}, expected data up to "
                    f"byte {offset + len(buffer):,}. It is truncated; fetch it again."
                )
            done += count

    def read_rows(
        self, buffer: memoryview, offset: int, rows: int, chunk: int, stride: int, pitch: int
    ) -> None:
        """Fill `buffer` with `rows` chunks that are `stride` bytes apart in the file.

        Args:
            buffer: Bytes to fill, with the chunks `pitch` bytes apart.
            offset: Position of the first chunk.
            rows: Number of chunks.
            chunk: Bytes per chunk.
            stride: Bytes from one chunk to the next in the file.
            pitch: Bytes from one chunk to the next in the buffer.
        """
        descriptor = self._file.fileno()
        with self._failures_reported():
            for row in range(rows):
                piece = buffer[row * pitch : row * pitch + chunk]
                if preadv(descriptor, (piece,), offset + row * stride) != chunk:
                    self.read_into(piece, offset + row * stride)

    def map(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Map the bytes at `offset` of an `own` file, for as long as the array lives."""
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        length, read_only = offset - start + size, mmap.ACCESS_READ
        try:
            pages = mmap.mmap(self._file.fileno(), length, access=read_only, offset=start)
        except OSError:  # some network disks cannot map files
            buffer = np.empty(size, np.uint8)
            self.read_into(buffer.data, offset)
            return buffer
        return np.frombuffer(pages, np.uint8, size, offset - start)

    def read(self, offset: int, size: int) -> bytes:
        """Return the `size` bytes at `offset`, or fewer at the end of the file."""
        with self._failures_reported():
            return pread(self._file.fileno(), size, offset)

    @contextmanager
    def _failures_reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be read ({error.strerror or error}). Copy it to another "
                "disk, or fetch it again."
            ) from error

    @property
    def descriptor(self) -> int:
        """The open file's descriptor, for another process that is to read the same file."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file; its tensors can no longer be read."""
        self._file.close()


class StoredTensor(ABC):
    """A tensor in a file.

    Attributes:
        name: Its name in the file, after cleaning by the reader.
        shape: Its dimensions as stored.
        dtype: Its dtype as it is read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stored_dtype(self) -> str:
        """Its stored dtype: ``float32``, ..., or ``bfloat16``, which NumPy lacks."""
        return self.dtype.name

    @abstractmethod
    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Return ``tensor[..., start:stop, ...]`` along `axis`, clipped like a slice.

        The rows of the result may be apart in memory. With `scratch` the result is stored in it.
        """

    def read(self) -> Array:
        """Return the whole tensor."""
        return self.read_slab(0, 0, self.shape[0])


@dataclass(frozen=True)
class RawTensor(StoredTensor):
    """A tensor whose numbers are stored uncompressed and in order in a file.

    Attributes:
        file: The file that holds it.
        offset: Position of its first byte.
        fortran: Whether the first axis varies fastest, as NumPy's ``fortran_order`` says.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    file: RawFile
    offset: int
    fortran: bool = False

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Read a slab with as few system calls as its layout allows."""
        stop = min(stop, self.shape[axis])
        start = min(start, stop)
        if self.fortran:
            flipped = replace(self, shape=self.shape[::-1], fortran=False)
            mirrored = len(self.shape) - 1 - axis
            return flipped.read_slab(mirrored, start, stop, scratch).transpose()
        before, after = self.shape[:axis], self.shape[axis + 1 :]
        inner = math.prod(after) * self.dtype.itemsize
        chunk, stride, rows = (stop - start) * inner, self.shape[axis] * inner, math.prod(before)
        if chunk == stride:  # a slab of the whole axis is contiguous
            chunk, stride, rows = chunk * rows, 0, 1
        pitch = chunk + (_ROW_PADDING if rows > 1 else 0)
        offset = self.offset + start * inner
        if self.file.own and rows == 1 and chunk:
            buffer = self.file.map(offset, chunk)
        else:
            buffer = (scratch or Scratch()).take(rows * pitch)
            self.file.read_rows(buffer.data, offset, rows, chunk, stride, pitch)
        lines: Array = buffer.reshape(rows, pitch)[:, :chunk].view(self.dtype)
        slab: Array = lines.reshape((*before, stop - start, *after))
        return slab


class Source(ABC):
    """An open checkpoint: its tensors by name, and its metadata.

    Attributes:
        path: Where it was read from.
        names: Naming scheme of its tensors, a column of the key mapping.
        tensors: Tensors by name.
        metadata: Key-value texts stored in the file.
        notes: Remarks for the user on how the file was read.
        taken: Kind and place of the weights that were chosen from several sets; None if there was
            one set.
        graph: The graph file of a SavedModel, and the prefix of its checkpoint.
        folder: Folder with files that describe the model; None if there are none.
    """

    path: Path
    names: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()
    taken: str | None = None
    graph: tuple[Path, Path] | None = None
    folder: Path | None = None

    @property
    def kernel_scale(self) -> float:
        """Factor of the standardized kernels; 1 except for files made with `eps_exact`.

        Raises:
            CheckpointError: If the stated factor is not readable.
        """
        text = self.metadata.get(KERNEL_SCALE, "1")
        if text not in ("1", str(EPS_EXACT_SCALE)):
            raise CheckpointError(
                f"{self.path}: its metadata says {KERNEL_SCALE} {brief(text)!r}, expected "
                f"{EPS_EXACT_SCALE}. The file is damaged, or bitzoo did not write it."
            )
        return float(text)

    def require_unscaled(self) -> None:
        """Refuse a file whose kernels are scaled.

        Raises:
            CheckpointError: If the kernels are scaled; says which libraries can use the file.
        """
        if self.kernel_scale != 1:
            raise CheckpointError(
                f"{self.path}: expected kernels as released, found them multiplied by "
                f"{EPS_EXACT_SCALE} (made by `bitzoo convert --eps-exact`, for inference with timm "
                "or transformers). Fine-tuned, they would learn a hundred times slower, and "
                "because of rounding they cannot be divided back exactly. Use the file that this "
                "one was made from."
            )

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of the file."""

    @abstractmethod
    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Read the whole file once, check its own checksums, and return its SHA-256.

        Args:
            advance: Called with the number of bytes that each step has read.

        Raises:
            CheckpointError: If a checksum inside the file does not match.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_pieces(file: RawFile, start: int, stop: int) -> Iterator[memoryview]:
    """Yield the bytes from `start` to `stop` in order, in one reused buffer."""
    buffer = memoryview(bytearray(_HASH_BYTES))
    for position in range(start, stop, _HASH_BYTES):
        piece = buffer[: min(_HASH_BYTES, stop - position)]
        file.read_into(piece, position)
        yield piece


def brief(found: object) -> str:
    """Return text from or about a file, shortened for a message."""
    text = str(found)
    return text if len(text) <= 200 else text[:200] + "..."
