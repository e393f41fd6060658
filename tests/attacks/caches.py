"""What bitzoo keeps for itself in its cache, under attack: nobody may notice that it was damaged.

Each kind is made once, whole. Damaged, it must be recognized and made again, or left aside: what a
user gets is what they got before. Nothing of it is refused, because nobody asked for it by name.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import random
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from attacks.checkpoints_under_attack import Attacked, Base
from attacks.engine import READ
from attacks.judges import Judge
from attacks.mutations import damage
from images import photo

from bitzoo.data.examples import Example
from bitzoo.data.file_ranges import StoredImage
from bitzoo.data.image_check import check_image
from bitzoo.data.kept_checks import TICK_NS, KeptChecks, look_at
from bitzoo.data.pixel_cache import ShardWriter, find_shards
from bitzoo.data.record_labels import LabelCache
from bitzoo.data.source_names import TAR, SourceName
from bitzoo.data.tar_shards import read_shards
from bitzoo.files import cache_dir
from bitzoo.inference.feature_cache import read_rows, write_rows
from bitzoo.models.preprocessing import EvalTransform

SIZE, WIDTH, COUNT = 8, 6, 5
LABELS = ("cat", "dog;newt", "7", "cat", "dög")
HASHES = tuple(hashlib.sha256(b"%d" % number).digest() for number in range(COUNT))
NUMBERS = np.random.default_rng(3).standard_normal((COUNT, WIDTH)).astype(np.float32)
PIXELS = np.random.default_rng(4).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
UNKNOWN = "asked again"
"""What a reader returns for a part that it does not know any more."""


@dataclass(frozen=True)
class Kind:
    """A kind of file in the cache.

    Attributes:
        use: Given the folder of the data, does what a user does: fills the cache, or uses it.
        may_ask: Whether what is unknown afterwards is said to be `UNKNOWN`, rather than made again.
    """

    use: Callable[[Path], Any]
    may_ask: bool = False


def _index(data: Path) -> Any:
    listing = read_shards(SourceName(TAR, str(data / "shards")))
    rows = [
        (row.key, row.label, row.labels, row.load.content())
        for row in listing.rows
        if isinstance(row.load, StoredImage)
    ]
    return rows, listing.classes, listing.notes, listing.problems


def _checks(data: Path) -> Any:
    """Each image's check as it was kept; one that is not known is made and kept."""
    found = []
    with KeptChecks.of("a test") as kept:
        for path in sorted((data / "images").iterdir()):
            example = Example(0, path)
            seen, check = look_at(example), kept.find(example)
            if check is None:
                check = check_image(example)
                assert seen is not None
                kept.add(seen, check)
            found.append(check)
    return found


def _compared(data: Path) -> Any:
    """The result of a comparison of all images."""
    with KeptChecks.of("a test") as kept:
        found = kept.compared("pairs", [b"all"], lambda: {"numbers": NUMBERS.reshape(-1)})
    return {name: array.tolist() for name, array in found.items()}


def _labels(data: Path) -> Any:
    cache = LabelCache(["a test"])
    return cache.labels("train", 400, range(400), lambda number: number * 7 % 11).tolist()


def _features(data: Path) -> Any:
    folder = cache_dir() / "features" / "a-test"
    out = np.zeros((COUNT, WIDTH), np.float32)
    if not folder.exists():
        write_rows(folder, HASHES, NUMBERS)
    missing = set(read_rows(folder, HASHES, out).tolist())
    return [UNKNOWN if row in missing else out[row].tolist() for row in range(COUNT)]


def _pixels(data: Path) -> Any:
    transform, cache = EvalTransform(crop=SIZE, resize=SIZE), cache_dir() / "decoded"
    if not cache.exists():
        with ShardWriter(cache, transform) as writer:
            for row, digest in enumerate(HASHES):
                writer.put(row, digest, PIXELS[row].tobytes())
            writer.finish()
    found: dict[bytes, Any] = {}
    for shard in find_shards(cache, transform, HASHES):
        for row, digest in enumerate(shard.hashes):
            pixels = shard.read(row)
            found[digest] = UNKNOWN if pixels is None else pixels.tolist()
    return [found.get(digest, UNKNOWN) for digest in HASHES]


KINDS = {
    "index of shards": Kind(_index),
    "checks of images": Kind(_checks),
    "comparison of images": Kind(_compared),
    "labels of records": Kind(_labels),
    "features": Kind(_features, may_ask=True),
    "decoded images": Kind(_pixels, may_ask=True),
}


def _png(seed: int) -> bytes:
    out = io.BytesIO()
    photo(seed, 20, 15).save(out, "PNG")
    return out.getvalue()


def make_data(folder: Path) -> None:
    """Write images, and two shards of images with their labels."""
    (folder / "images").mkdir(parents=True)
    (folder / "shards").mkdir()
    for number in range(COUNT):
        (folder / "images" / f"{number}.png").write_bytes(_png(number))
    (folder / "images" / "5.png").write_bytes(b"no image")
    for shard in range(2):
        with tarfile.open(folder / "shards" / f"part-{shard}.tar", "w") as archive:
            for number, label in enumerate(LABELS):
                for suffix, content in (
                    ("png", _png(number + shard)),
                    ("cls", label.encode()),
                ):
                    entry = tarfile.TarInfo(f"{shard}{number}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
            archive.addfile(tarfile.TarInfo("alone.png"))


@dataclass
class CachesTarget:
    """All kinds of files in the cache."""

    name: str = "caches"
    judge: str = ""
    data: Path = Path()
    bases: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Kind -> the files that it has in the cache."""
    whole: dict[str, Any] = field(default_factory=dict)

    def prepare(self, folder: Path, judge: Judge | None) -> None:
        self.data = folder / "data"
        make_data(self.data)
        time.sleep(2 * TICK_NS / 1e9)  # an image that has just been written is read again anyway
        for name in KINDS:
            cache = folder / name
            self.whole[name] = self._use(name, cache)
            files = (path for path in sorted(cache.rglob("*")) if path.is_file())
            kept = {str(p.relative_to(cache)): p.read_bytes() for p in files}
            self.bases[name] = {path: data for path, data in kept.items() if data}  # no locks
            assert self.bases[name], name
            assert self._use(name, cache) == self.whole[name], name

    def _use(self, kind: str, cache: Path) -> Any:
        os.environ["BITZOO_CACHE"] = str(cache)  # of this process, which has no other use for it
        logging.getLogger("bitzoo").setLevel(logging.ERROR)  # that something was made again
        return KINDS[kind].use(self.data)

    def attack(self, rng: random.Random, place: Path) -> Attacked:
        kind = rng.choice(list(self.bases))
        files = self.bases[kind]
        name = rng.choice(list(files))
        data = files[name]
        ends = [(max(0, len(data) - 1500), len(data)), (max(0, len(data) - 24), len(data))]
        changed, what = damage(data, rng, [*ends, (0, len(data))], rng.choice([*files.values()]))
        for each, content in files.items():
            path = place / "cache" / each
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(changed if each == name else content)
        return Attacked(place / "cache" / name, f"{kind}: {what}", Base(kind, {}), place)

    def read(self, case: Attacked) -> Any:
        return self._use(case.base.name, case.place / "cache")

    def differs(self, case: Attacked, ours: Any, judge: Judge | None) -> tuple[str, str]:
        name = case.base.name
        whole = self.whole[name]
        if KINDS[name].may_ask:
            whole = [UNKNOWN if o == UNKNOWN else w for o, w in zip(ours, whole, strict=True)]
        return (READ, "") if ours == whole else ("different", f"{ours!r:.200}")


CACHES = CachesTarget()
