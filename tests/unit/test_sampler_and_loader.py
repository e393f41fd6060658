"""Batches are a pure function of (seed, step), drawn uniformly, and can be split anywhere."""

import contextlib
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import stats
from torchvision.transforms import functional as tv

from bitzoo.data.image_store import Pixels
from bitzoo.data.loader import (
    BatchPlan,
    Feed,
    _mix_on_cpu,
    _mix_on_device,
    materialize,
    prefetch,
)
from bitzoo.errors import UsageError

SIZE, CROP, COUNT, CLASSES = 13, 9, 11, 4
PLAN = BatchPlan(COUNT, 8, SIZE, CROP, flip=True, mixup_alpha=0.4, seed=5)
PLAIN = BatchPlan(COUNT, 8, SIZE, CROP, flip=True, mixup_alpha=0.0, seed=5)
LABELS = np.arange(COUNT) * 3 % CLASSES
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
FIELDS = ["step", "indices", "top", "left", "flip", "mix", "lam"]


class ArrayPixels(Pixels):
    """Noise in memory; records what is read."""

    def __init__(self, count=COUNT, size=SIZE):
        self.size = size
        self.array = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
        self.array.setflags(write=False)
        self.reads = []

    def __len__(self):
        return len(self.array)

    def rows(self, indices):
        self.reads.append(self._checked(indices).tolist())
        return [self.array[index] for index in self.reads[-1]]

    def close(self):
        pass


def tensors(batch, rows=slice(None), pixels=None, **options):
    return materialize(batch, rows, pixels or ArrayPixels(), LABELS, CLASSES, CROP, **options)


def assert_same(first, second):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


class TestPlan:
    def test_a_batch_does_not_depend_on_earlier_calls(self):
        steps = [0, 1, 2, 3, 40, 1_000_000]
        forwards = {step: PLAN.batch(step) for step in steps}
        for step in reversed(steps):
            fresh = BatchPlan(COUNT, 8, SIZE, CROP, flip=True, mixup_alpha=0.4, seed=5)
            assert_same(fresh.batch(step), forwards[step])
            assert_same(PLAN.batch(step), forwards[step])

    @pytest.mark.parametrize("field", ["indices", "top", "left", "flip", "mix", "lam"])
    def test_seeds_and_steps_give_other_batches(self, field):
        large = {
            seed: BatchPlan(100, 50, 64, 32, mixup_alpha=0.4, seed=seed) for seed in (0, 1, 2**63)
        }
        found = [
            np.asarray(getattr(plan.batch(step), field)).tolist()
            for plan in large.values()
            for step in (0, 1)
        ]
        assert all(a != b for i, a in enumerate(found) for b in found[:i])

    def test_the_generator_is_philox_with_seed_and_purpose_as_key_and_the_step_as_counter(self):
        # keyed by words here, by packed integers in the sampler
        key = np.array([5, 1], np.uint64)
        random = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 7]))
        expected = random.integers(0, SIZE - CROP + 1, (2, 8))
        batch = PLAIN.batch(7)
        np.testing.assert_array_equal([batch.top, batch.left], expected)

    @pytest.mark.parametrize(
        ("count", "batch_size"), [(10, 4), (3, 8), (5, 5), (7, 1), (1, 4), (6, 18)]
    )
    def test_every_epoch_has_each_example_once(self, count, batch_size):
        plan = BatchPlan(count, batch_size, 8, 8, seed=3)
        steps = 12 * count // batch_size + 1
        order = np.concatenate([plan.batch(step).indices for step in range(steps)])
        assert len(order) == steps * batch_size
        epochs = order[: len(order) // count * count].reshape(-1, count)
        assert len(epochs) >= 12
        np.testing.assert_array_equal(
            np.sort(epochs, 1), np.tile(np.arange(count), (len(epochs), 1))
        )
        rest = order[epochs.size :]
        assert len(set(rest)) == len(rest)
        if count > 4:
            assert len({tuple(epoch) for epoch in epochs}) > 10

    def test_orders_are_uniform(self):
        plan = BatchPlan(6, 6, 8, 8, seed=1)
        orders = np.array([plan.batch(step).indices for step in range(600)])
        for position in range(6):
            counts = np.bincount(orders[:, position], minlength=6)
            assert stats.chisquare(counts).pvalue > 1e-3

    def test_crops_mirrors_and_weights_have_their_distributions(self):
        plan = BatchPlan(1000, 64, 21, 16, mixup_alpha=0.1, seed=2)
        batches = [plan.batch(step) for step in range(400)]
        for edges in ("top", "left"):
            offsets = np.concatenate([getattr(batch, edges) for batch in batches])
            counts = np.bincount(offsets)
            assert len(counts) == 6  # 0..resize-crop, both ends included
            assert stats.chisquare(counts).pvalue > 1e-3
        top, left = (np.concatenate([getattr(b, e) for b in batches]) for e in ("top", "left"))
        pairs = np.bincount(top * 6 + left, minlength=36)
        assert stats.chisquare(pairs).pvalue > 1e-3  # independent of each other
        flips = np.concatenate([batch.flip for batch in batches])
        assert stats.binomtest(int(flips.sum()), flips.size, 0.5).pvalue > 1e-3
        lams = [batch.lam for batch in batches]
        assert stats.kstest(lams, stats.beta(0.1, 0.1).cdf).pvalue > 1e-3
        assert stats.kstest(lams, stats.beta(1, 1).cdf).pvalue < 1e-6
        partners = np.array([batch.mix for batch in batches])
        np.testing.assert_array_equal(np.sort(partners, 1), np.tile(np.arange(64), (400, 1)))
        assert stats.chisquare(np.bincount(partners[:, 0], minlength=64)).pvalue > 1e-3

    def test_options_change_only_what_they_name(self):
        mixed, plain = PLAN.batch(3), PLAIN.batch(3)
        for field in ("indices", "top", "left", "flip"):
            np.testing.assert_array_equal(getattr(mixed, field), getattr(plain, field))
        assert plain.mix is None
        assert plain.lam == 1
        unflipped = BatchPlan(COUNT, 8, SIZE, CROP, flip=False, seed=5).batch(3)
        assert plain.flip.any()
        assert not unflipped.flip.any()
        np.testing.assert_array_equal(unflipped.left, plain.left)
        whole = BatchPlan(COUNT, 8, SIZE, SIZE, seed=5).batch(3)
        assert not whole.top.any()
        assert not whole.left.any()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"num_examples": 0}, "`num_examples` must be at least 1, found 0"),
            ({"batch_size": 0}, "`batch_size` must be at least 1, found 0"),
            ({"crop": 0}, r"`crop` must be in 1\.\.13 \(resize\), found 0"),
            ({"crop": 14}, r"`crop` must be in 1\.\.13 \(resize\), found 14"),
            ({"mixup_alpha": -0.1}, "`mixup_alpha` must be at least 0 and finite, found -0.1"),
            ({"mixup_alpha": float("nan")}, "`mixup_alpha` must be .* found nan"),
            ({"seed": -1}, r"`seed` must be in 0\.\.2\*\*64 - 1, found -1"),
            ({"seed": 2**64}, "`seed` must be in"),
        ],
    )
    def test_numbers_out_of_range(self, wrong, message):
        right = {"num_examples": COUNT, "batch_size": 8, "resize": SIZE, "crop": CROP}
        with pytest.raises(UsageError, match=message):
            BatchPlan(**{**right, **wrong})

    def test_a_negative_step(self):
        with pytest.raises(UsageError, match="`step` must be at least 0, found -1"):
            PLAN.batch(-1)


def released_augmentation(batch):
    """Images and loss targets, one image at a time with Pillow and torchvision."""
    crops = []
    decoded, flips = ArrayPixels().array[batch.indices], batch.flip
    for pixels, top, left, flip in zip(decoded, batch.top, batch.left, flips, strict=True):
        image = Image.fromarray(pixels).crop((left, top, left + CROP, top + CROP))
        image = ImageOps.mirror(image) if flip else image
        crops.append(tv.normalize(tv.to_tensor(image), [0.5] * 3, [0.5] * 3))
    x = torch.stack(crops).double()
    y = torch.nn.functional.one_hot(torch.from_numpy(LABELS[batch.indices]), CLASSES).double()
    if batch.mix is None:
        return x, y
    lam = batch.lam
    return lam * x + (1 - lam) * x[batch.mix], lam * y + (1 - lam) * y[batch.mix]


@pytest.mark.parametrize("plan", [PLAN, PLAIN], ids=["mixup", "plain"])
class TestMaterialize:
    @pytest.mark.parametrize("device", DEVICES)
    def test_equals_the_released_augmentation(self, plan, device):
        for step in range(4):
            batch = plan.batch(step)
            assert 0 < batch.flip.sum() < 8
            images, targets = tensors(batch, device=device)
            expected_images, expected_targets = released_augmentation(batch)
            # float32 against float64: a few units in the last place of numbers up to 1
            torch.testing.assert_close(images.cpu().double(), expected_images, atol=5e-7, rtol=0)
            torch.testing.assert_close(targets.cpu().double(), expected_targets, atol=1e-7, rtol=0)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_rows_are_the_same_however_a_batch_is_split(self, plan, dtype, device):
        batch = plan.batch(1)
        whole = tensors(batch, dtype=dtype, device=device)
        halves = [slice(0, 4), slice(4, 8)]
        uneven = [slice(0, 3), slice(3, 6), slice(6, 8)]
        single = [slice(row, row + 1) for row in range(8)]
        ranks = [slice(rank, None, 3) for rank in range(3)]
        for cuts in (halves, uneven, single, ranks):
            for rows in cuts:
                for part, full in zip(
                    tensors(batch, rows, dtype=dtype, device=device), whole, strict=True
                ):
                    assert torch.equal(part, full[rows])

    def test_gpu_code_equals_cpu_code(self, plan):
        decoded = ArrayPixels(COUNT, 40).array
        batch = BatchPlan(COUNT, 8, 40, 33, True, plan.mixup_alpha, 9).batch(2)
        sides = np.arange(8)[None] if batch.mix is None else np.stack([np.arange(8), batch.mix])
        crops = np.stack([a[sides] for a in (batch.indices, batch.top, batch.left, batch.flip)])
        by_cpu = _mix_on_cpu(
            list(decoded), crops.astype(np.int64), batch.lam, 33, torch.contiguous_format
        )
        raw = torch.from_numpy(decoded.copy())
        by_gpu = _mix_on_device(raw, torch.from_numpy(crops), batch.lam, 33)
        assert torch.equal(by_gpu, by_cpu)

    def test_memory_formats_and_dtypes(self, plan):
        batch = plan.batch(0)
        images, targets = tensors(batch)
        assert images.is_contiguous()
        last = tensors(batch, memory_format=torch.channels_last)[0]
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(last, images)
        half, full_targets = tensors(batch, dtype=torch.float16)
        assert torch.equal(half, images.half())
        assert full_targets.dtype == torch.float32
        assert torch.equal(full_targets, targets)

    def test_each_image_is_read_once(self, plan):
        pixels = ArrayPixels()
        batch = BatchPlan(COUNT, 64, SIZE, CROP, True, plan.mixup_alpha, 0).batch(0)
        tensors(batch, slice(0, 40), pixels)
        (read,) = pixels.reads
        assert read == sorted(set(read))


def test_partners_of_one_class_give_that_class_all_the_weight():
    batch = PLAN.batch(0)
    same = materialize(batch, slice(None), ArrayPixels(), np.zeros(COUNT, int), 2, CROP)[1]
    torch.testing.assert_close(same, torch.tensor([[1.0, 0.0]]).expand(8, 2), atol=1e-7, rtol=0)


WORK = [(step, rows) for step in (4, 5, 6) for rows in (slice(0, 3), slice(3, 8))]


def feed_of(pixels, **options):
    return Feed(pixels, LABELS, CLASSES, torch.device("cpu"), **options)


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("bitzoo-prefetch")]


class TestPrefetch:
    @pytest.mark.parametrize("device", DEVICES)
    def test_gives_what_materialize_gives(self, device):
        feed = Feed(ArrayPixels(), LABELS, CLASSES, torch.device(device), torch.bfloat16)
        with contextlib.closing(prefetch(PLAN, WORK, feed)) as stream:
            for micro, (step, rows) in zip(stream, WORK, strict=True):
                assert (micro.batch.step, micro.rows) == (step, rows)
                images, targets = tensors(PLAN.batch(step), rows, dtype=torch.bfloat16)
                torch.testing.assert_close(micro.images.cpu(), images, atol=0, rtol=2**-7)
                assert torch.equal(micro.targets.cpu(), targets)
        assert threads() == []

    def test_reads_ahead_only_by_depth(self):
        pixels = ArrayPixels()
        with contextlib.closing(prefetch(PLAN, WORK, feed_of(pixels), depth=2)) as stream:
            next(stream)
            deadline = time.monotonic() + 10
            while len(pixels.reads) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            assert len(pixels.reads) == 3  # 1 in use, 2 ahead
        assert threads() == []
        assert len(pixels.reads) == 3

    def test_an_error_comes_at_its_position(self):
        class Failing(ArrayPixels):
            def rows(self, indices):
                if not {*PLAN.batch(5).indices[:3]} - {*indices}:
                    raise UsageError("The image 'a.png' cannot be read.")
                return super().rows(indices)

        stream = prefetch(PLAN, WORK, feed_of(Failing()))
        assert [next(stream).rows, next(stream).rows] == [slice(0, 3), slice(3, 8)]
        with pytest.raises(UsageError, match=r"a\.png"):
            next(stream)
        assert threads() == []

    def test_an_interrupt_of_the_caller_ends_the_thread(self):
        endless = ((step, slice(None)) for step in range(10**9))

        def train():
            with contextlib.closing(prefetch(PLAN, endless, feed_of(ArrayPixels()))) as stream:
                for micro in stream:
                    if micro.batch.step == 3:
                        raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train()
        assert threads() == []

    @pytest.mark.parametrize("pixels", [ArrayPixels(COUNT, CROP), ArrayPixels(COUNT + 1)])
    def test_pixels_of_another_plan(self, pixels):
        message = f"expected 11 of edge 13, found {len(pixels)} of edge {pixels.size}"
        with pytest.raises(UsageError, match=message):
            next(prefetch(PLAN, WORK, feed_of(pixels)))
