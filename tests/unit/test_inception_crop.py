"""Inception crops: their boxes, and the same pixels whatever computes them."""

import io
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bitzoo.data.dataset import Example, Split
from bitzoo.data.image_store import open_pixels, open_whole_images
from bitzoo.data.inception_crop import CropKey, crop_box, cropped
from bitzoo.data.label_sets import LabelSets
from bitzoo.data.loader import Feed, materialize, prefetch
from bitzoo.data.sampler import BatchPlan
from bitzoo.errors import UsageError

SIZES = [(40, 60), (61, 35), (33, 33), (90, 20), (48, 64), (200, 120)]
CROP, SEED = 32, 12345


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Noisy images of several sizes as PNG and JPEG files."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate(SIZES):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def open_split(files, workers=2):
    examples = [Example(0, path, key=path.name) for path in files]
    return open_whole_images(Split("train", tuple(examples)), CROP, workers=workers)


def boxes(height, width, count=4000, seed=SEED):
    return np.array([crop_box(CropKey(seed, 0, n).stream(), height, width) for n in range(count)])


class TestBoxes:
    @pytest.mark.parametrize("size", [(400, 500), (333, 251), (64, 64)])
    def test_areas_and_ratios(self, size):
        top, left, height, width = boxes(*size).T
        share = height * width / (size[0] * size[1])
        assert 0.05 <= share.min() < 0.07
        assert 0.9 < share.max() <= 1
        # a rounded width is off by half a pixel, at most
        assert (np.abs(width - np.clip(width, height * 0.75, height * 4 / 3)) <= 0.5).all()
        assert (top >= 0).all()
        assert (top + height <= size[0]).all()
        assert (left >= 0).all()
        assert (left + width <= size[1]).all()

    def test_height_is_uniform_for_a_given_ratio(self):
        """As in TensorFlow; the mean area is then 0.42 of a square, not 0.53 as for its area."""
        _, _, height, width = boxes(1000, 1000, 8000).T
        near = np.abs(width / height - 1) < 0.02
        low, high = np.sqrt(0.05) * 1000, 1000
        quarters = np.histogram(height[near], 4, (low, high))[0] / near.sum()
        assert np.abs(quarters - 0.25).max() < 4 * np.sqrt(0.1875 / near.sum())

    def test_corners_are_uniform_over_all_places(self):
        found = boxes(4, 4, 6000)
        squares = found[(found[:, 2] == 3) & (found[:, 3] == 3)]
        counts = Counter(map(tuple, squares[:, :2].tolist()))
        assert set(counts) == {(0, 0), (0, 1), (1, 0), (1, 1)}  # the last row and column too
        expected = len(squares) / 4
        assert max(abs(n - expected) for n in counts.values()) < 5 * np.sqrt(expected)

    def test_an_image_too_narrow_for_any_box_is_taken_whole(self):
        assert (boxes(1000, 10, 20) == [0, 0, 1000, 10]).all()
        assert crop_box(CropKey(0, 0, 0).stream(), 1, 1) == (0, 0, 1, 1)

    def test_a_box_depends_on_seed_step_and_row(self):
        keys = [CropKey(s, t, r) for s in (0, 1, 2**64 - 1) for t in (0, 1, 9**9) for r in (0, 1)]
        found = [crop_box(key.stream(), 500, 500) for key in keys]
        assert len(set(found)) == len(keys)
        assert found == [crop_box(key.stream(), 500, 500) for key in keys]

    def test_known_boxes(self):
        """So that a run that was begun with one version can be continued with another."""
        assert [crop_box(CropKey(7, 3, n).stream(), 375, 500) for n in range(3)] == KNOWN


KNOWN = [(12, 243, 164, 200), (27, 171, 213, 274), (239, 137, 118, 128)]


class TestPixels:
    plan = BatchPlan(len(SIZES), 10, CROP, CROP, seed=SEED, mixup_alpha=0.4, random_resized=True)

    def by_hand(self, files, step):
        """The images of a step in float64, from the boxes."""
        batch, rows = self.plan.batch(step), []
        for row, index in enumerate(batch.indices):
            image = Image.open(files[index]).convert("RGB")
            top, left, height, width = crop_box(
                CropKey(SEED, step, row).stream(), image.height, image.width
            )
            inside = np.asarray(image)[top : top + height, left : left + width]
            small = Image.fromarray(inside).resize((CROP, CROP), Image.Resampling.BILINEAR)
            pixels = np.asarray(small, np.float64) / 127.5 - 1
            rows.append(pixels[:, ::-1] if batch.flip[row] else pixels)
        images = np.stack(rows).transpose(0, 3, 1, 2)
        return batch.lam * images + (1 - batch.lam) * images[batch.mix]

    @pytest.mark.parametrize("workers", [1, 3])
    def test_equal_those_made_by_hand_by_any_number_of_workers(self, files, workers):
        labels = np.arange(len(files))
        with open_split(files, workers) as pixels:
            for step in (0, 5):
                images, _ = materialize(
                    self.plan.batch(step), slice(None), pixels, labels, len(files), CROP
                )
                assert np.abs(images.numpy() - self.by_hand(files, step)).max() < 1e-6

    def test_micro_batches_and_processes_change_nothing(self, files):
        labels = LabelSets.of([[0, 2], [1], [], [2], [0, 1, 2], [1]])
        with open_split(files) as pixels:
            whole = materialize(self.plan.batch(4), slice(None), pixels, labels, 3, CROP)
            parts = [slice(0, 3), slice(3, 4), slice(4, 10)]
            feed = Feed(pixels, labels, 3, torch.device("cpu"))
            found = list(prefetch(self.plan, [(4, rows) for rows in parts], feed))
            other = materialize(self.plan.batch(4), slice(1, None, 2), pixels, labels, 3, CROP)
        assert torch.equal(torch.cat([part.images for part in found]), whole[0])
        assert torch.equal(torch.cat([part.targets for part in found]), whole[1])
        assert torch.equal(other[0], whole[0][1::2])

    def test_images_in_memory_have_the_same_crops(self, files):
        loaded: list[Any] = [np.asarray(Image.open(path).convert("RGB")) for path in files]
        examples = [Example(0, load=partial(loaded.__getitem__, k)) for k in range(len(files))]
        keys = [CropKey(1, 2, row) for row in range(len(files))]
        with (
            open_split(files) as pixels,
            open_whole_images(Split("train", tuple(examples)), CROP) as memory,
        ):
            found = pixels.crops(range(len(files)), keys)
            assert all(
                np.array_equal(a, b)
                for a, b in zip(found, memory.crops(range(len(files)), keys), strict=True)
            )
        assert np.array_equal(found[0], cropped(Image.open(files[0]), keys[0], CROP))

    def test_a_turned_image_is_cropped_upright(self, tmp_path):
        pixels = np.random.default_rng(1).integers(0, 256, (40, 80, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
        key, split = CropKey(0, 0, 0), Split("train", (Example(0, tmp_path / "turned.png"),))
        with open_whole_images(split, CROP) as opened:
            found = opened.crops([0], [key])[0]
        upright = Image.fromarray(np.rot90(pixels, -1))
        assert np.array_equal(found, cropped(upright, key, CROP))

    def test_targets_of_several_labels_are_mixed_as_the_images(self, files):
        sets = [[0, 2], [1], [], [2], [0, 1, 2], [1]]
        batch = self.plan.batch(1)
        with open_split(files) as pixels:
            _, targets = materialize(batch, slice(None), pixels, LabelSets.of(sets), 3, CROP)
        rows = np.array([[float(k in sets[n]) for k in range(3)] for n in batch.indices])
        expected = batch.lam * rows + (1 - batch.lam) * rows[batch.mix]
        assert np.abs(targets.numpy() - expected).max() < 1e-6


class TestRefusals:
    def test_squares_have_no_random_resized_crops(self, files, tmp_path):
        split = Split("train", (Example(0, files[0]),))
        squares = open_pixels(split, CROP, budget_bytes=0)
        with squares, pytest.raises(UsageError, match="`open_whole_images`"):
            squares.crops([0], [CropKey(0, 0, 0)])
        with open_whole_images(split, CROP) as pixels:
            with pytest.raises(UsageError, match="take their `crops`"):
                pixels.rows([0])
            with pytest.raises(IndexError, match=r"in 0\.\.0, found 1\.\.1"):
                pixels.crops([1], [CropKey(0, 0, 0)])

    def test_a_plan_of_random_resized_crops_has_no_resize(self):
        with pytest.raises(UsageError, match=r"`resize` must be 32 \(crop\), found 36"):
            BatchPlan(4, 2, 36, 32, random_resized=True)

    def test_a_file_that_changed_since_it_was_checked(self, files, tmp_path):
        content = io.BytesIO()
        Image.new("RGB", (40, 40)).save(content, "PNG")
        (tmp_path / "a.png").write_bytes(content.getvalue())
        split = Split("train", (Example(0, tmp_path / "a.png", key="a.png", sha256="0" * 64),))
        whole = open_whole_images(split, CROP)
        with whole, pytest.raises(UsageError, match=r"a\.png: .*changed since it was checked"):
            whole.crops([0], [CropKey(0, 0, 0)])
