"""Large data sets: a sample is checked before training, and bad images are met while training."""

from __future__ import annotations

import io
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from bitzoo.data import many_checks
from bitzoo.data.dataset import Split, read_dataset
from bitzoo.data.image_check import ImageCheck, check_image
from bitzoo.data.image_store import open_pixels, open_whole_images
from bitzoo.data.inception_crop import CropKey, cropped
from bitzoo.data.kept_checks import KeptChecks, look_at
from bitzoo.data.lazy_validation import SAMPLE
from bitzoo.data.loader import BatchPlan, materialize
from bitzoo.data.problems import DatasetError, Problem, Reason
from bitzoo.data.stand_ins import StandIns
from bitzoo.data.validation import inspect

COUNT, BAD = 40, (3, 4, 17, 39)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BITZOO_CACHE", str(cache))
    monkeypatch.setattr("bitzoo.data.kept_checks.TICK_NS", 0)  # no file here changes within a tick
    return cache


def pngs(count=COUNT, bad=(), empty=()):
    random = np.random.default_rng(1)
    for number in range(count):
        file = io.BytesIO()
        size = (*random.integers(20, 40, 2), 3)
        Image.fromarray(random.integers(0, 256, size, np.uint8)).save(file, "png")
        content = file.getvalue()
        content = content[: len(content) // 2] if number in bad else content
        yield number, (b"" if number in empty else content)


def shards(tmp_path, **which):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, content in pngs(**which):
            for suffix, part in (("png", content), ("cls", b"%d" % (number % 4))):
                info = tarfile.TarInfo(f"{number:04}.{suffix}")
                info.size = len(part)
                tar.addfile(info, io.BytesIO(part))
    return f"tar:{tmp_path}/a.tar"


def folder(tmp_path, **which):
    for number, content in pngs(**which):
        path = tmp_path / "folder" / str(number % 4) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "folder"


@pytest.fixture
def only_five(monkeypatch):
    """A sample of five images: 0, 9, 19, 29 and 39 of forty."""
    monkeypatch.setattr("bitzoo.data.lazy_validation.SAMPLE", 5)


def count_checks(monkeypatch):
    """The names of the images that are checked from now on."""
    seen = []

    def counted(example, **options):
        seen.append(example.key)
        return check_image(example, **options)

    monkeypatch.setattr(many_checks, "check_image", counted)
    return seen


@pytest.mark.parametrize("make", [shards, folder])
def test_only_a_sample_is_decoded(tmp_path, make, only_five, monkeypatch):
    seen = count_checks(monkeypatch)
    listed = read_dataset(make(tmp_path, bad=(3, 17)), val_fraction=0.25, seed=1)
    images, summary = inspect(listed, lazily=True)
    assert len(seen) == summary.checked == 10
    assert summary.counts == {"train": 30, "val": 10}
    assert summary.class_counts["train"] == tuple(
        np.bincount([e.label for e in images.train.examples])
    )
    assert [e.key for e in images.train.examples] == [e.key for e in listed.train.examples]
    (said,) = [note for note in summary.notes if note.startswith("Checked before training")]
    assert "the list of all 40 images, and 10 of them decoded" in said
    assert "Not looked for" in said
    decoded = {e.key: e for e in listed.train.examples if e.key in seen}
    sizes = [check_image(e).size for e in decoded.values()]
    assert summary.resolution == tuple(np.median(sizes, axis=0).astype(int))


def test_a_sample_is_the_whole_of_a_small_set(tmp_path):
    _, summary = inspect(read_dataset(shards(tmp_path)), lazily=True)
    assert summary.checked == COUNT < SAMPLE


@pytest.mark.parametrize("make", [shards, folder])
def test_bad_images_of_the_sample(tmp_path, make):
    listed = read_dataset(make(tmp_path, bad=BAD))
    with pytest.raises(DatasetError, match=r"found 4 problems of 1 kind") as caught:
        inspect(listed, lazily=True)
    assert all(f"{number:04}" in str(caught.value) for number in BAD)
    images, summary = inspect(listed, lazily=True, skip_bad=True)
    assert len(images.train) == COUNT  # another stands in for each
    assert {p.subject.split("/")[-1][:4] for p in summary.skipped.problems} == {
        f"{k:04}" for k in BAD
    }


def test_images_without_bytes_are_known_before(tmp_path, only_five):
    listed = read_dataset(folder(tmp_path, empty=(5, 6)))
    with pytest.raises(DatasetError, match=r"Files of 0 bytes \(2\)"):
        inspect(listed, lazily=True)
    images, summary = inspect(listed, lazily=True, skip_bad=True)
    assert len(images.train) == COUNT - 2
    assert [p.reason for p in summary.skipped.problems] == [Reason.NO_BYTES] * 2


def test_the_fingerprint_follows_list_sizes_and_sample(tmp_path, only_five):
    def fingerprint(**which):
        return inspect(read_dataset(folder(tmp_path, **which)), lazily=True)[0].fingerprint

    before = fingerprint()
    assert fingerprint() == before
    assert fingerprint(bad=(8,)) != before  # not in the sample, but of another size
    assert fingerprint() == before
    path = next(iter((tmp_path / "folder" / "0").iterdir()))
    path.rename(path.with_name("other.png"))
    assert fingerprint(count=0) != before


def expected_stand_in(index, bad=BAD, count=COUNT):
    while index in bad:
        index = (index + 1) % count
    return index


class TestStandIns:
    def opened(self, tmp_path, make, **options):
        images, _ = inspect(read_dataset(make(tmp_path, bad=BAD)), lazily=True, skip_bad=True)
        order = sorted(images.train.examples, key=lambda e: e.key.rpartition("/")[2])
        split = Split("train", tuple(order))
        return split, StandIns(split.examples, **options)

    @pytest.mark.parametrize("make", [shards, folder])
    def test_the_next_that_decodes_stands_in(self, tmp_path, make):
        met: list[Problem] = []
        split, stand_ins = self.opened(tmp_path, make, skip_bad=True, on_bad=met.append)
        with open_whole_images(split, 16, workers=2, stand_ins=stand_ins) as pixels:
            keys = [CropKey(7, 0, row) for row in range(COUNT)]
            found = pixels.crops(np.arange(COUNT), keys)
            used = pixels.used(np.arange(COUNT))
        expected = [expected_stand_in(k) for k in range(COUNT)]
        assert used.tolist() == expected
        assert expected[3] == expected[4] == 5
        assert expected[39] == 0
        for row, image in enumerate(found):
            rgb = split.examples[expected[row]].image()
            rgb = Image.open(rgb) if isinstance(rgb, os.PathLike) else rgb
            assert np.array_equal(image, cropped(rgb.convert("RGB"), keys[row], 16))
        names = sorted(problem.subject.rpartition("/")[2][:4] for problem in met)
        assert names == [f"{k:04}" for k in BAD]
        assert {p.reason for p in stand_ins.problems} == {Reason.DAMAGED}

    def test_the_order_of_reading_does_not_matter(self, tmp_path):
        split, _ = self.opened(tmp_path, shards, skip_bad=True)
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(COUNT)
            stand_ins = StandIns(split.examples, skip_bad=True)
            with open_pixels(
                split, 8, budget_bytes=1 << 30, workers=3, stand_ins=stand_ins
            ) as pixels:
                for part in np.array_split(order, 7):
                    pixels.rows(part)
                assert pixels.used(np.arange(COUNT)).tolist() == [
                    expected_stand_in(k) for k in range(COUNT)
                ]

    def test_labels_are_those_of_the_image_that_is_seen(self, tmp_path):
        split, stand_ins = self.opened(tmp_path, folder, skip_bad=True)
        labels = np.array([e.label for e in split.examples])
        plan = BatchPlan(COUNT, COUNT, 8, 8, flip=False, seed=2)
        batch = plan.batch(0)
        with open_pixels(split, 8, budget_bytes=0, workers=2, stand_ins=stand_ins) as pixels:
            _, targets = materialize(batch, slice(None), pixels, labels, 4, 8)
        seen = [labels[expected_stand_in(k)] for k in batch.indices.tolist()]
        assert torch.equal(targets, torch.eye(4)[torch.tensor(seen)])
        assert seen != labels[batch.indices].tolist()

    @pytest.mark.parametrize("make", [shards, folder])
    def test_without_skipping_the_run_ends_with_the_name(self, tmp_path, make):
        split, stand_ins = self.opened(tmp_path, make, skip_bad=False)
        with open_pixels(split, 8, budget_bytes=0, workers=1, stand_ins=stand_ins) as pixels:
            pixels.rows([0, 1, 2])
            with pytest.raises(DatasetError, match=r"0017.*truncated or damaged.*skip_bad=True"):
                pixels.rows([16, 17, 18])

    def test_nothing_left_to_stand_in(self, tmp_path):
        images = read_dataset(shards(tmp_path, bad=range(COUNT)))
        stand_ins = StandIns(images.train.examples, skip_bad=True)
        with (
            open_pixels(images.train, 8, budget_bytes=0, stand_ins=stand_ins) as pixels,
            pytest.raises(DatasetError, match=r"none stands in for them: 40 from a\.tar/0007 on"),
        ):
            pixels.rows([7])

    def test_a_shard_that_changes_is_no_bad_image(self, tmp_path):
        images = read_dataset(shards(tmp_path))
        stand_ins = StandIns(images.train.examples, skip_bad=True)
        os.utime(tmp_path / "a.tar", ns=(1, 1))
        with (
            open_pixels(images.train, 8, budget_bytes=0, stand_ins=stand_ins) as pixels,
            pytest.raises(DatasetError, match="has changed since it was indexed"),
        ):
            pixels.rows([7])

    def test_a_later_run_knows_them(self, tmp_path, monkeypatch):
        source = shards(tmp_path, bad=BAD)
        for decoded in (COUNT + len(BAD), COUNT):
            images = read_dataset(source)
            with KeptChecks.of(images.source) as kept:
                stand_ins = StandIns(images.train.examples, skip_bad=True, kept=kept)
                tried: list[str] = []

                def decode(example, tried=tried):
                    tried.append(example.key)
                    found = check_image(example)
                    if found.reason:
                        raise DatasetError("bad")
                    return found.sha256

                found = [stand_ins.read(k, decode) for k in range(COUNT)]
            assert len(tried) == decoded
            assert found[17] == found[18] != found[16]
            assert len(stand_ins.problems) == len(BAD)


class TestKeptChecks:
    @pytest.mark.parametrize("make", [shards, folder])
    def test_a_second_run_decodes_nothing(self, tmp_path, make, monkeypatch):
        source, seen = make(tmp_path, bad=BAD), count_checks(monkeypatch)
        first = inspect(read_dataset(source, val_fraction=0.2), skip_bad=True, keep_checks=True)
        assert len(seen) == COUNT
        again = inspect(read_dataset(source, val_fraction=0.2), skip_bad=True, keep_checks=True)
        assert len(seen) == COUNT
        assert again[0].fingerprint == first[0].fingerprint
        assert again[1] == first[1]
        plain = inspect(read_dataset(source, val_fraction=0.2), skip_bad=True)
        assert len(seen) == 2 * COUNT
        assert plain[1] == first[1]
        assert [e.sha256 for e in plain[0].train.examples] == [
            e.sha256 for e in again[0].train.examples
        ]

    def test_a_file_that_changes_is_checked_again(self, tmp_path, monkeypatch):
        source, seen = folder(tmp_path), count_checks(monkeypatch)
        inspect(read_dataset(source), keep_checks=True)
        del seen[:]
        one, two, three = sorted((source / "2").iterdir())[:3]
        os.utime(one, ns=(5, 5))
        content = two.read_bytes()
        two.unlink()
        two.write_bytes(content)
        three.write_bytes(three.read_bytes() + b"\0")
        inspect(read_dataset(source), keep_checks=True)
        assert sorted(seen) == sorted(f"2/{path.name}" for path in (one, two, three))

    def test_what_depends_on_the_machine_is_not_kept(self, tmp_path, monkeypatch):
        source = folder(tmp_path, empty=(1,))
        kept = KeptChecks(tmp_path / "kept")
        example = read_dataset(source).train.examples[5]
        for reason in Reason:
            kept.add(look_at(example), ImageCheck(reason, "x"))
            known = kept.find(example)
            is_kept = reason in (Reason.NO_BYTES, Reason.DAMAGED, Reason.ANIMATED)
            assert (known is not None and known.reason is reason) == is_kept

    def test_arrays_have_no_identity(self):
        images = read_dataset((np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1]))
        assert look_at(images.train.examples[0]) is None

    def test_a_damaged_file_of_checks_counts_as_none(self, tmp_path, own_cache, monkeypatch):
        source, seen = folder(tmp_path), count_checks(monkeypatch)
        inspect(read_dataset(source), keep_checks=True)
        (file,) = (own_cache / "checks").glob("*.checks")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        inspect(read_dataset(source), keep_checks=True)
        assert len(seen) == 2 * COUNT
