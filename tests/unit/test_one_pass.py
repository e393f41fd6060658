"""Check, hash and decode in one pass; start again on unchanged files without reading them.

Whatever changes in between is noticed and never trained on. The oracles are Pillow itself and the
workers that decode files apart from any check.
"""

import errno
import hashlib
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from images import BAD, FINE
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from bitzoo.data import image_check, kept_checks, many_checks, pixel_cache
from bitzoo.data.dataset import read_dataset
from bitzoo.data.image_store import CachedPixels, DecodingPixels, open_pixels
from bitzoo.data.kept_checks import KeptChecks
from bitzoo.data.rows_while_checking import WantedRows
from bitzoo.data.validation import inspect
from bitzoo.errors import UsageError
from bitzoo.models import image_files
from bitzoo.models.preprocessing import EvalTransform

LOTS = 10**9
SQUARE, SHORT = EvalTransform.to_square(16), EvalTransform(14, 18, "bicubic", square=False)
ROW = 16 * 16 * 3 + 36


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BITZOO_CACHE", str(cache))
    monkeypatch.setattr(kept_checks, "TICK_NS", 0)  # no file changes within a tick, unless said
    return cache


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8))


def write(folder, count=12):
    for seed in range(count):
        path = folder / "ab"[seed % 2] / f"{seed:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(seed).save(path)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "data")


def wanted(cache, budget=LOTS, **transforms):
    return WantedRows(transforms or {"train": SQUARE, "val": SQUARE}, budget, cache)


def opened(split, transform, cache, depth=None, budget=LOTS):
    """Return the pixels, their kind, and how many images were decoded for them."""
    tasks = []
    with open_pixels(
        split,
        transform,
        cache=cache,
        budget_bytes=budget,
        bit_depth=depth,
        workers=1,
        progress=lambda task, done, total: tasks.append(task),
    ) as pixels:
        return pixels.take(range(len(split))), type(pixels), tasks.count("decoding")


def shards(cache):
    return sorted(cache.glob("*/*.rows"))


class TestOnePass:
    def test_every_form_of_image_has_the_pixels_of_separate_decoding(self, tmp_path):
        """Those of more than 8 bits per channel are decoded after, with the bit depth of all."""
        for number, form in enumerate(FINE.values()):
            form.write(tmp_path / "data" / f"{'ab'[number % 2]}", seed=number)
        listed = read_dataset(tmp_path / "data", val_fraction=0.3)
        cache = tmp_path / "cache"
        images, summary = inspect(listed, rows=wanted(cache, train=SQUARE, val=SHORT), workers=2)
        assert summary == inspect(listed, workers=2)[1]
        assert summary.bit_depth == 16
        deep = decoded = 0
        for split, transform in ((images.train, SQUARE), (images.val, SHORT)):
            deep += sum(Path(e.key).name in ("scan.png", "scan_rgb.png") for e in split.examples)
            found, kind, made = opened(split, transform, cache, summary.bit_depth)
            apart, other, _ = opened(split, transform, cache, summary.bit_depth, budget=0)
            assert (kind, other) == (CachedPixels, DecodingPixels)
            np.testing.assert_array_equal(found, apart)
            decoded += made
        assert decoded == deep == 2
        assert {path.parent.name.rpartition("-")[0][-3:] for path in shards(cache)} == {"-16"}

    def test_equals_torchvision_and_decodes_no_file_twice(self, tmp_path, folder, monkeypatch):
        reads, read = [], image_files.read_image_file

        def counted(path):
            reads.append(path)
            return read(path)

        monkeypatch.setattr(image_check, "read_image_file", counted)
        images, _ = inspect(read_dataset(folder), rows=wanted(tmp_path / "cache"), workers=2)
        assert len(reads) == 12
        found, _, decoded = opened(images.train, SQUARE, tmp_path / "cache")
        assert decoded == 0
        seeds = [int(Path(e.key).stem) for e in images.train.examples]
        expected = [tv.resize(noise(s), [16, 16], InterpolationMode.BILINEAR) for s in seeds]
        np.testing.assert_array_equal(found, np.stack([np.asarray(e) for e in expected]))

    def test_bad_images_and_copies_have_no_rows(self, tmp_path, folder):
        for form in BAD.values():
            form.write(folder / "a")
        (folder / "b" / "copy.png").write_bytes((folder / "b" / "01.png").read_bytes())
        images, _ = inspect(read_dataset(folder), rows=wanted(tmp_path / "c"), skip_bad=True)
        (shard,) = shards(tmp_path / "c")
        contents = {hashlib.sha256(e.path.read_bytes()).digest() for e in images.train.examples}
        assert set(pixel_cache.Shard(shard, 16).hashes) == contents
        assert shard.stat().st_size == 12 * ROW
        assert opened(images.train, SQUARE, tmp_path / "c")[2] == 0

    def test_what_the_cache_has_is_not_written_again(self, tmp_path, folder):
        cache = tmp_path / "cache"
        images, _ = inspect(read_dataset(folder), rows=wanted(cache))
        before = {path: path.stat().st_mtime_ns for path in shards(cache)}
        full = 12 * ROW  # with no room for another row, and nothing that is removed for one
        inspect(read_dataset(folder), rows=wanted(cache, 2 * full))
        inspect(read_dataset(folder), rows=wanted(cache, full))
        assert {path: path.stat().st_mtime_ns for path in shards(cache)} == before
        assert opened(images.train, SQUARE, cache, budget=full)[2] == 0

    def test_a_data_set_over_the_budget_gets_no_rows(self, tmp_path, folder):
        other = write(tmp_path / "other", 2)
        inspect(read_dataset(other), rows=wanted(tmp_path / "cache"))
        before = shards(tmp_path / "cache")
        inspect(read_dataset(folder), rows=wanted(tmp_path / "cache", 12 * ROW - 1))
        assert shards(tmp_path / "cache") == before
        inspect(read_dataset(folder), rows=wanted(tmp_path / "cache", 12 * ROW))
        assert sum(path.stat().st_size for path in shards(tmp_path / "cache")) <= 12 * ROW

    def test_several_shards(self, tmp_path, folder, monkeypatch):
        monkeypatch.setattr(pixel_cache, "SHARD_ROWS", 5)
        images, _ = inspect(read_dataset(folder), rows=wanted(tmp_path / "c"), workers=2)
        assert sorted(int(path.stem.split("-")[-1]) for path in shards(tmp_path / "c")) == [2, 5, 5]
        assert opened(images.train, SQUARE, tmp_path / "c")[2] == 0

    def test_a_disk_that_fills_up(self, tmp_path, folder, monkeypatch):
        plain = inspect(read_dataset(folder))[1]

        def full(descriptor, data, offset):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "pwrite", full)
        _, summary = inspect(read_dataset(folder), rows=wanted(tmp_path / "cache"))
        assert summary == plain
        assert [
            p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size
        ] == []

    def test_an_interrupt_leaves_nothing_unfinished_and_keeps_the_checks(
        self, tmp_path, folder, monkeypatch
    ):
        def progress(task, done, total):
            if done == 6:
                raise KeyboardInterrupt

        monkeypatch.setattr(pixel_cache, "SHARD_ROWS", 4)
        with pytest.raises(KeyboardInterrupt):
            inspect(
                read_dataset(folder),
                rows=wanted(tmp_path / "c"),
                workers=1,
                keep_checks=True,
                progress=progress,
            )
        assert [path.stem[-2:] for path in shards(tmp_path / "c")] == ["-4"]
        assert list((tmp_path / "c").glob("*/.bitzoo*")) == []
        again = inspect(read_dataset(folder), rows=wanted(tmp_path / "c"), keep_checks=True)
        assert 6 <= int(again[1].kept.split()[3]) < 12
        assert opened(again[0].train, SQUARE, tmp_path / "c")[2] < 8


class TestPoison:
    def test_a_file_that_is_replaced_while_it_is_checked(self, tmp_path, folder, monkeypatch):
        """Row and name come from the same bytes; the new image is never trained on."""
        victim, read = folder / "a" / "04.png", image_files.read_image_file

        def read_then_replace(path):
            content = read(path)
            if Path(path) == victim:
                noise(99).save(victim)
            return content

        before = victim.read_bytes()
        monkeypatch.setattr(image_check, "read_image_file", read_then_replace)
        cache = tmp_path / "cache"
        images, _ = inspect(read_dataset(folder), rows=wanted(cache), workers=1, keep_checks=True)
        (example,) = [e for e in images.train.examples if e.path == victim]
        assert example.sha256 == hashlib.sha256(before).hexdigest()
        row = images.train.examples.index(example)
        found = opened(images.train, SQUARE, cache)[0][row]
        old = tv.resize(noise(4), [16, 16], InterpolationMode.BILINEAR)
        np.testing.assert_array_equal(found, np.asarray(old))
        # without the cache the file is read again: the run ends, and says which it is
        with pytest.raises(UsageError, match=r"a/04\.png: the image has changed since it was"):
            opened(images.train, SQUARE, cache, budget=0)
        monkeypatch.undo()
        now, _ = inspect(read_dataset(folder), keep_checks=True)
        (example,) = [e for e in now.train.examples if e.path == victim]
        assert example.sha256 == hashlib.sha256(victim.read_bytes()).hexdigest()

    def test_a_file_that_is_replaced_before_its_row_is_made_after_all(self, tmp_path, folder):
        """As for a guess that was wrong, or a row that was damaged."""
        images, _ = inspect(read_dataset(folder), rows=wanted(tmp_path / "c"))
        noise(99).save(folder / "a" / "04.png")
        with pytest.raises(UsageError, match=r"a/04\.png: the image has changed since it was"):
            opened(images.train, EvalTransform.to_square(8), tmp_path / "c")
        with open_pixels(images.train, SQUARE, cache=tmp_path / "c", budget_bytes=LOTS) as pixels:
            (shard,) = shards(tmp_path / "c")
            shard.write_bytes(bytes(shard.stat().st_size))
            row = [e.key for e in images.train.examples].index("a/04.png")
            with pytest.raises(UsageError, match=r"a/04\.png: the image has changed since it was"):
                pixels.take([row])

    @pytest.mark.parametrize("link", [False, True], ids=["in place", "replaced"])
    def test_a_file_of_the_same_size_and_time(self, tmp_path, folder, link):
        inspect(read_dataset(folder), rows=wanted(tmp_path / "c"), keep_checks=True)
        victim = folder / "a" / "04.png"
        status, content = victim.stat(), bytearray(victim.read_bytes())
        Image.fromarray(255 - np.asarray(noise(4))).save(tmp_path / "other.png")
        other = (tmp_path / "other.png").read_bytes()
        content = (other + bytes(len(content)))[: len(content)]
        assert len(other) <= len(content)
        if link:
            victim.unlink()
        victim.write_bytes(content)
        os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert victim.stat().st_mtime_ns == status.st_mtime_ns
        assert victim.stat().st_size == status.st_size
        now, summary = inspect(read_dataset(folder), keep_checks=True)
        (example,) = [e for e in now.train.examples if e.path == victim]
        assert example.sha256 == hashlib.sha256(content).hexdigest()
        assert summary.kept.startswith("Not read again: 11 of 12 images, checked ")

    @pytest.mark.parametrize(("checked_at", "trusted"), [(11.9, False), (12.1, True)])
    def test_a_change_within_a_tick(self, folder, monkeypatch, checked_at, trusted):
        """Of a file system that counts in steps of two seconds; all times of the files are 10."""

        class Stat:
            def __init__(self, real):
                self.st_size, self.st_ino, self.st_mode = 77, 5, real.st_mode
                self.st_mtime_ns = self.st_ctime_ns = 10 * 10**9

        def at(seconds):
            clock = SimpleNamespace(time_ns=lambda: int(seconds * 10**9))
            clock.localtime, clock.strftime = time.localtime, time.strftime
            monkeypatch.setattr(kept_checks, "time", clock)

        system = SimpleNamespace(stat=lambda path: Stat(os.stat(path)), path=os.path)
        system.fspath, system.fsencode = os.fspath, os.fsencode
        monkeypatch.setattr(kept_checks, "os", system)
        monkeypatch.setattr(kept_checks, "TICK_NS", 2 * 10**9)
        at(checked_at)
        victim = folder / "a" / "04.png"
        inspect(read_dataset(folder), keep_checks=True)
        noise(99).save(victim)
        at(100)
        now, _ = inspect(read_dataset(folder), keep_checks=True)
        (example,) = [e for e in now.train.examples if e.path == victim]
        # at 12.1, such a change gets another time: that it has the same shows what is trusted
        assert (example.sha256 == hashlib.sha256(victim.read_bytes()).hexdigest()) != trusted


class TestStartingAgain:
    @pytest.fixture
    def reads(self, monkeypatch):
        """The names of the files that are read from now on."""
        found, read = [], image_files.read_image_file

        def noted(path):
            found.append(path.name)
            return read(path)

        monkeypatch.setattr(image_check, "read_image_file", noted)
        return found

    def test_nothing_is_read_and_all_is_the_same(self, folder, reads):
        first = inspect(read_dataset(folder, val_fraction=0.2), keep_checks=True)
        assert len(reads) == 12
        assert first[1].kept == ""
        again = inspect(read_dataset(folder, val_fraction=0.2), keep_checks=True)
        assert len(reads) == 12
        assert again == first
        assert again[1].kept.startswith("Not read again: 12 images, checked ")
        assert again[1].kept.endswith(
            ", unchanged by size, time and inode. `recheck=True` reads all."
        )
        third = inspect(read_dataset(folder, val_fraction=0.2), keep_checks=True, recheck=True)
        assert len(reads) == 24
        assert third == first
        assert third[1].kept == ""

    def test_what_only_looks_changed_is_read_but_not_decoded(self, folder, reads, monkeypatch):
        first = inspect(read_dataset(folder), keep_checks=True)
        for path in folder.glob("*/*"):
            os.utime(path, (1, 1))
        monkeypatch.setattr(image_check, "open_image", None)
        touched = inspect(read_dataset(folder), keep_checks=True)
        assert len(reads) == 24
        assert touched == first
        assert touched[1].kept == ""

    def test_rows_are_decoded_later_if_only_the_checks_are_known(self, tmp_path, folder, reads):
        inspect(read_dataset(folder), keep_checks=True)
        images, _ = inspect(read_dataset(folder), keep_checks=True, rows=wanted(tmp_path / "c"))
        assert len(reads) == 12
        assert shards(tmp_path / "c") == []
        assert opened(images.train, SQUARE, tmp_path / "c")[2] == 12

    def test_bad_images_are_known_too(self, folder, reads):
        BAD["cut off JPEG"].write(folder / "a")
        first = inspect(read_dataset(folder), keep_checks=True, skip_bad=True)
        again = inspect(read_dataset(folder), keep_checks=True, skip_bad=True)
        assert len(reads) == 13
        assert again == first

    def test_two_processes_keep_what_both_found(self, tmp_path, folder):
        examples = read_dataset(folder).train.examples
        one, two = KeptChecks(tmp_path / "kept"), KeptChecks(tmp_path / "kept")
        for kept, part in ((one, examples[:6]), (two, examples[6:])):
            many_checks.check_images(part, kept=kept)
        assert all(KeptChecks(tmp_path / "kept").find(example) for example in examples)
