"""Walk folders of images: what is an image, what is left out, and the account of both.

The one walk of `finetune`, `evaluate` and `predict`, so that all see the same images.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bitzoo.data.file_kinds import IMAGE, kind_by_content, kind_by_name
from bitzoo.data.problems import join_some, printable
from bitzoo.data.run_folders import holds_only_runs
from bitzoo.models.image_files import suffixes

_OF_TOOLS = re.compile(
    r"@eadir|@tmp|@sharebin|#recycle|#snapshot|@recycle|@recently|@recently-snapshot|@__thumb"
    r"|\$recycle\.bin|system volume information|found\.\d{3}|lost\+found|~snapshot"
    r"|network trash folder|temporary items|__macosx|paxheaders?(\.\d+)?|@paxheader"
    r"|__pycache__|node_modules|_gsdata_|_vti_\w+|recycler"
    r"|.+\.(lrdata|lrlibrary|photoslibrary|photolibrary|aplibrary)",
)
"""Names, in lower case, of folders that storage systems (Synology, QNAP, NetApp), archivers,
operating systems and other tools create among a user's files. Names that could be a class (`trash`,
`recycled`, `thumbs`) are not among them."""


@dataclass(frozen=True)
class Entries:
    """The direct contents of a folder, each list sorted by name.

    Attributes:
        folders: Sub-folders, without those of systems and tools.
        images: Files with an image's suffix, and those whose first bytes are an image's.
        by_content: Those of `images` that only their first bytes show.
        others: Kind -> the other files.
        tools: Folders of systems and tools, and hidden folders.
    """

    folders: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    by_content: list[Path] = field(default_factory=list)
    others: dict[str, list[Path]] = field(default_factory=dict)
    tools: list[Path] = field(default_factory=list)


@dataclass
class FolderScan:
    """Reads folders, and remembers what was left out.

    Attributes:
        root: The folder that displayed names are relative to; None shows paths as they are.
        unreadable: Folders that could not be read, and why.
    """

    root: Path | None = None
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    _left_out: dict[str, list[Path]] = field(default_factory=dict)
    _tools: list[Path] = field(default_factory=list)
    _by_content: list[Path] = field(default_factory=list)
    _scanned: dict[Path, Entries] = field(default_factory=dict)
    _of_images: frozenset[str] = field(default_factory=suffixes)

    def entries(self, folder: Path) -> Entries:
        """Return the contents of a folder, which is read once.

        Raises:
            OSError: If it cannot be read.
        """
        if folder not in self._scanned:
            inside = Entries()
            with os.scandir(folder) as listed:
                for entry in sorted(listed, key=lambda entry: entry.name):
                    _sort_in(entry, folder / entry.name, inside, self._of_images)
            self._scanned[folder] = inside
        return self._scanned[folder]

    def images_below(self, folder: Path, entered: set[tuple[int, int]]) -> list[Path]:
        """Return all images below a folder: its own first, then those of each folder in it.

        Links are followed, but no folder in `entered` is entered again. What is left out is
        remembered.
        """
        found: list[Path] = []
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            try:
                identity = identity_of(folder)
                inside = self.entries(folder)
            except OSError as error:
                self.unreadable.append((folder, error.strerror or str(error)))
                continue
            if identity in entered:
                self.leave_out("links to folders that were already read", [folder])
                continue
            entered.add(identity)
            found += inside.images
            waiting += reversed(inside.folders)
            self.account_for(inside)
        return found

    def account_for(self, inside: Entries) -> None:
        """Remember what is left out of a folder whose images are used."""
        for kind, files in inside.others.items():
            self.leave_out(kind, files)
        self._tools += inside.tools
        self._by_content += inside.by_content

    def leave_out(self, what: str, paths: Sequence[Path]) -> None:
        """Remember paths that are left out, for the notes."""
        self._left_out.setdefault(what, []).extend(paths)

    def key(self, path: Path) -> str:
        """Return the display name of a path."""
        return printable((path.relative_to(self.root) if self.root else path).as_posix())

    def notes(self) -> tuple[str, ...]:
        """Return what was left out, and what was read in spite of its name, as sentences."""
        notes = [
            f"Ignored: {what} ({len(paths)}): {join_some([self.key(path) for path in paths])}."
            for what, paths in self._left_out.items()
            if paths
        ]
        if self._tools:
            notes += _note_on_tools(self._tools)
        if self._by_content:
            shown = join_some([self.key(path) for path in self._by_content])
            what = "Read as images by their first bytes"
            notes.append(f"{what} ({len(self._by_content)}): {shown}.")
        return tuple(notes)


def count_images(folder: Path) -> int:
    """Count the files below a folder that have an image's name; links are not followed."""
    of_images = suffixes()
    return sum(
        kind_by_name(name, of_images) == IMAGE and not name.startswith("._")
        for _, _, files in os.walk(folder)
        for name in files
    )


def in_words(images: int) -> str:
    """Return a number of images with its noun."""
    return f"{images:,} image" + ("" if images == 1 else "s")


def identity_of(folder: Path) -> tuple[int, int]:
    """Return what two paths of one folder have in common.

    Raises:
        OSError: If the folder cannot be read.
    """
    status = folder.stat()
    return status.st_dev, status.st_ino


def _sort_in(
    entry: os.DirEntry[str], path: Path, inside: Entries, of_images: frozenset[str]
) -> None:
    is_hidden = entry.name.startswith(".")
    if _is_folder(entry):
        if is_hidden or _OF_TOOLS.fullmatch(entry.name.lower()):
            inside.tools.append(path)
        elif holds_only_runs(entry, of_images):
            inside.others.setdefault("run folders", []).append(path)
        else:
            inside.folders.append(path)
        return
    kind = kind_by_name(entry.name, of_images)
    if is_hidden:
        if kind == IMAGE and not entry.name.startswith("._"):  # which macOS writes beside any file
            inside.others.setdefault("hidden files", []).append(path)
        return
    if kind is None:
        kind = kind_by_content(path)
        if kind == IMAGE:
            inside.by_content.append(path)
    if kind == IMAGE:
        inside.images.append(path)
    else:
        inside.others.setdefault(kind, []).append(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself: by its name it may be an image, which validation reports


def _note_on_tools(folders: Sequence[Path]) -> list[str]:
    """Name the folders, alike ones together; a hidden one only if there are images in it."""
    images: Counter[str] = Counter()
    places = Counter(folder.name for folder in folders)
    for folder in folders:
        images[folder.name] += count_images(folder)
    shown = [
        f"{printable(name)} ({in_words(images[name])}"
        + (f" in {count} folders)" if count > 1 else ")")
        for name, count in places.items()
        if images[name] or not name.startswith(".")
    ]
    return [f"Ignored: folders of systems and tools: {join_some(shown, 10)}."] if shown else []
