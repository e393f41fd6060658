"""What a checkpoint is to the converters: named tensors that stay in their file until asked for.

Readers turn a file into a `Source`; nothing here knows a format. A tensor is read in slabs along
one axis, so that memory is bounded by a block and not by a tensor (the largest released one has
683 MiB).
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

Array = NDArray[Any]

KERNEL_SCALE = "kernel_scale"
"""Key in a file's metadata."""
EPS_EXACT_SCALE = 10
"""Squared, the ratio of timm's and transformers' eps, 1e-8, to the release's, 1e-10: kernels so
scaled make their networks compute the released function."""

_HASH_BYTES = 1 << 20
_ROW_PADDING = 64
"""Bytes between the rows of a strided slab. Rows that lie a power of two apart fall into the same
few cache sets, and a transpose of them runs at a third of the speed (measured)."""


class Scratch:
    """Memory that a thread uses again and again; fresh pages cost more than the copy into them."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes; what they held before is lost."""
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

    Pages are copied, not mapped: a mapped file that gets shorter or whose disk fails kills the
    process, where a read reports an error. Only a file that is the process's own may be mapped.
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
                count = os.preadv(self._file.fileno(), [buffer[done:]], offset + done)
            if not count:
                raise CheckpointError(
                    f"{self.path}: the file ends at byte {offset + done:,}, expected data up to "
                    f"byte {offset + len(buffer):,}. It is truncated; fetch it again."
                )
            done += count

    def read_rows(
        self, buffer: memoryview, offset: int, rows: int, chunk: int, stride: int, pitch: int
    ) -> None:
        """Fill `buffer` with `rows` chunks that lie `stride` bytes apart in the file.

        Args:
            buffer: Bytes to fill; the chunks go `pitch` bytes apart.
            offset: Position of the first chunk.
            rows: How many chunks.
            chunk: Bytes of each.
            stride: Bytes from one chunk to the next in the file.
            pitch: The same in the buffer.
        """
        descriptor, preadv = self._file.fileno(), os.preadv
        with self._failures_reported():
            for row in range(rows):
                piece = buffer[row * pitch : row * pitch + chunk]
                if preadv(descriptor, (piece,), offset + row * stride) != chunk:
                    self.read_into(piece, offset + row * stride)

    def map(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Return the bytes at `offset` of an own file, mapped for as long as the array lives."""
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        length, read_only = offset - start + size, mmap.ACCESS_READ
        try:
            pages = mmap.mmap(self._file.fileno(), length, access=read_only, offset=start)
        except OSError:  # some network disks map nothing
            buffer = np.empty(size, np.uint8)
            self.read_into(buffer.data, offset)
            return buffer
        return np.frombuffer(pages, np.uint8, size, offset - start)

    def read(self, offset: int, size: int) -> bytes:
        """Return the `size` bytes at `offset` (fewer only if the file ends)."""
        with self._failures_reported():
            return os.pread(self._file.fileno(), size, offset)

    @contextmanager
    def _failures_reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be read ({error.strerror or error}). Copy it to another "
                "disk, or fetch it again."
            ) from error

    def close(self) -> None:
        """Release the file; tensors of it can be read no more."""
        self._file.close()


class StoredTensor(ABC):
    """A tensor in a file.

    Attributes:
        name: Its name in the file, as the reader cleaned it.
        shape: Its dimensions as stored.
        dtype: Its number format as it is read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def number_format(self) -> str:
        """How its numbers are stored: ``float32``, or ``bfloat16``, which NumPy lacks."""
        return str(self.dtype)

    @abstractmethod
    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Return ``tensor[..., start:stop, ...]`` along `axis`, clipped as a slice is.

        The rows of the result may lie apart in memory. With `scratch` the result lives in it.
        """

    def read(self) -> Array:
        """Return the whole tensor."""
        return self.read_slab(0, 0, self.shape[0])


@dataclass(frozen=True)
class RawTensor(StoredTensor):
    """A tensor whose numbers lie uncompressed and in order in a file.

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
        if chunk == stride:  # a slab of the whole axis lies in one piece
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
    """An open checkpoint: its tensors by name, and what the file says of itself.

    Attributes:
        path: Where it was read from.
        names: The column of the name table that its tensor names follow.
        tensors: Tensors by name.
        metadata: Text the file carries about itself.
        notes: What a user should know about how the file was read.
        graph: A SavedModel's file of graphs, and the prefix of its checkpoint.
        folder: Where files beside the weights say what the model is; None if none do.
    """

    path: Path
    names: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()
    graph: tuple[Path, Path] | None = None
    folder: Path | None = None

    @property
    def kernel_scale(self) -> float:
        """What standardized kernels were multiplied with; 1 but for files made with `eps_exact`.

        Raises:
            CheckpointError: If the file states it in no readable form.
        """
        text = self.metadata.get(KERNEL_SCALE, "1")
        if text not in ("1", str(EPS_EXACT_SCALE)):
            raise CheckpointError(
                f"{self.path}: its metadata says {KERNEL_SCALE} {brief(text)!r}, expected "
                f"{EPS_EXACT_SCALE}. The file was made by something else, or is damaged."
            )
        return float(text)

    def require_unscaled(self) -> None:
        """Refuse a file whose kernels are not those of the release.

        Raises:
            CheckpointError: Names who can use the file, and what to do instead.
        """
        if self.kernel_scale != 1:
            raise CheckpointError(
                f"{self.path}: expected kernels as released, found them multiplied by "
                f"{EPS_EXACT_SCALE} (made with --eps-exact, to infer with timm or transformers). "
                "Fine-tuned, they would learn a hundred times slower, and rounding keeps them from "
                "being divided back exactly. Use the file that this one was made from."
            )

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of the file."""

    @abstractmethod
    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Read the whole file once, check what it says of its own integrity, return its SHA-256.

        Args:
            advance: Called with the number of bytes each step has read.

        Raises:
            CheckpointError: If a checksum inside the file does not match.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file."""

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
    """Return a text out of a file, or about it, short enough for a message."""
    text = str(found)
    return text if len(text) <= 200 else text[:200] + "..."
