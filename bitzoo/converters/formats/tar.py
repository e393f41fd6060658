"""Read modules that the hubs serve as tar archives, unpacked safely to a temporary folder."""

from __future__ import annotations

import errno
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath

from bitzoo.converters.formats.foreign import name_file
from bitzoo.converters.formats.zip_members import no_space_to_unpack
from bitzoo.converters.limits import require_plausible
from bitzoo.converters.source import Array, Scratch, Source, StoredTensor, brief
from bitzoo.errors import CheckpointError, damage_reported
from bitzoo.files import sha256_of, temporary_folder

MAX_BYTES = 16 << 30
"""Bound on the unpacked size of an archive; the largest released network has 4.43 GB."""
MAX_MEMBERS = 10_000
_MAX_HEADER_BYTES = 1 << 20
_CONFLICTS = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 1_000
"""Bounds on the names in it: file systems allow no more."""


def is_tar(path: Path) -> bool:
    """Whether a file is an uncompressed tar archive."""
    with path.open("rb") as file:
        file.seek(257)
        return file.read(5) == b"ustar"


class _BoundedMember(tarfile.TarInfo):
    """Bounds the header of a member; `tarfile` would read a long name of any length into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> _BoundedMember:
        member = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        if not (member.isreg() or member.isdir()) and member.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


class ArchiveSource(Source):
    """The checkpoint inside a tar archive, unpacked to a temporary folder while it is open.

    Only regular files and folders are unpacked, and only to paths inside the folder.

    Raises:
        CheckpointError: If the archive is damaged, has paths outside itself, links or devices,
            unpacks to more than `MAX_BYTES`, or holds no checkpoint.
    """

    def __init__(self, path: Path, open_inner: Callable[[Path], Source]) -> None:
        """Unpack and open.

        Args:
            path: The archive.
            open_inner: Opens the unpacked checkpoint.
        """
        self.path = path
        self._held = ExitStack()
        try:
            self._root = root = self._held.enter_context(temporary_folder()) / "unpacked"
            _unpack(path, root)
            self._inner = _open_below(path, root, open_inner)
        except BaseException:
            self._held.close()
            raise
        self.names = self._inner.names
        self.tensors = {
            name: _ArchivedTensor(tensor, path, root)
            for name, tensor in self._inner.tensors.items()
        }
        self.metadata, self.notes = self._inner.metadata, self._inner.notes
        self.taken = self._inner.taken
        self.graph, self.folder = self._inner.graph, self._inner.folder

    @property
    def size(self) -> int:
        """Bytes of the archive."""
        return self.path.stat().st_size

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the archive, and check the checksums of the checkpoint in it."""
        with _told_of_archive(self.path, self._root):
            self._inner.sha256()
        return sha256_of(self.path, advance=advance)

    def close(self) -> None:
        """Close the checkpoint, and remove the unpacked files."""
        self._inner.close()
        self._held.close()


def _unpack(path: Path, root: Path) -> None:
    root.mkdir()
    try:
        with (
            damage_reported(path, "a tar archive of a module"),
            tarfile.open(path, tarinfo=_BoundedMember) as archive,
        ):
            for member, place in _checked(path, archive):
                _unpack_member(archive, member, root / place)
    except CheckpointError as error:
        if isinstance(error.__cause__, tarfile.TarError) and (what := _compressed(path)):
            raise CheckpointError(
                f"{path}: expected a tar archive of a module, found {what}, compressed with gzip. "
                "Run gunzip on it, and give the file that it leaves."
            ) from error
        raise
    except OSError as error:
        if error.errno in _CONFLICTS:
            raise CheckpointError(
                f"{path}: expected one file for each name, found members that exclude each other "
                f"({error.strerror}). It is damaged; fetch it again."
            ) from error
        raise no_space_to_unpack(path, error) from error


def _compressed(path: Path) -> str:
    """Return what a gzip file is that holds no tar archive; empty for anything else."""
    with path.open("rb") as file, suppress(zlib.error):
        head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(file.read(1 << 16), 1 << 12)
        if head[257:262] == b"ustar":  # it is one, but damaged
            return ""
        known = {b"\x89HDF": "an HDF5 file (.h5)", b"PK\3\4": "a zip file, as .npz and .pth are"}
        return known.get(head[:4]) or name_file(head)[0]
    return ""


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    data = archive.extractfile(member)
    assert data is not None
    with data, target.open("xb") as out:
        shutil.copyfileobj(data, out, 1 << 20)


def _checked(
    path: Path, archive: tarfile.TarFile
) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """Yield the members and their checked relative paths, before their data is read."""
    size = 0
    for count, member in enumerate(archive, start=1):
        place = PurePosixPath(member.name)
        if place.is_absolute() or ".." in place.parts or "\\" in member.name:
            raise CheckpointError(
                f"{path}: expected paths inside the archive, found a member named "
                f"{brief(repr(member.name))}, which leads out of it. Do not load this file."
            )
        sizes = [len(part.encode(errors="replace")) for part in place.parts]
        if (
            "\0" in member.name
            or max(sizes, default=0) > _MAX_NAME_BYTES
            or (sum(sizes) > _MAX_PATH_BYTES)
        ):
            raise CheckpointError(
                f"{path}: expected names of at most {_MAX_NAME_BYTES} bytes, found a member named "
                f"{brief(repr(member.name))} ({len(member.name):,} characters). It is damaged; "
                "fetch it again."
            )
        if not (member.isfile() or member.isdir()) or member.issparse():
            raise CheckpointError(
                f"{path}: {brief(repr(member.name))} is a link, a device or a sparse file; "
                "expected regular files and folders. Do not load this file."
            )
        size += member.size
        if size > MAX_BYTES or count > MAX_MEMBERS:
            raise CheckpointError(
                f"{path}: unpacks to {size:,} bytes or more in {count:,} files, expected at most "
                f"{MAX_BYTES:,} in {MAX_MEMBERS:,}. This is not a BiT checkpoint."
            )
        require_plausible(path, size, path.stat().st_size)
        yield member, place


def _open_below(path: Path, root: Path, open_inner: Callable[[Path], Source]) -> Source:
    """Open the checkpoint in the archive's root, or in its only folder."""
    folder = root
    entries = list(folder.iterdir())
    while len(entries) == 1:
        folder = entries[0]
        if not folder.is_dir():
            break
        entries = list(folder.iterdir())
    with _told_of_archive(path, root):
        return open_inner(folder)


class _ArchivedTensor(StoredTensor):
    """A tensor of the unpacked checkpoint, whose errors name the archive."""

    def __init__(self, inner: StoredTensor, path: Path, root: Path) -> None:
        self.name, self.shape, self.dtype = inner.name, inner.shape, inner.dtype
        self._inner, self._path, self._root = inner, path, root

    @property
    def nbytes(self) -> int:
        return self._inner.nbytes

    @property
    def stored_dtype(self) -> str:
        return self._inner.stored_dtype

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        with _told_of_archive(self._path, self._root):
            return self._inner.read_slab(axis, start, stop, scratch)


@contextmanager
def _told_of_archive(path: Path, root: Path) -> Iterator[None]:
    """Let errors about an unpacked file name the archive, which the user knows."""
    try:
        yield
    except CheckpointError as error:
        reason = str(error).replace(f"{root}/", "").replace(str(root), "its content")
        raise CheckpointError(f"{path}: in the archive, {reason}") from error
