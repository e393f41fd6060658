"""The pixel cache never holds an image under another's name, and never returns damaged pixels."""

import hashlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from bitzoo.data import image_store
from bitzoo.data.dataset import Example, Split, read_dataset
from bitzoo.data.image_store import CachedPixels, Pixels, open_pixels
from bitzoo.data.validation import inspect
from bitzoo.errors import UsageError
from bitzoo.models.preprocessing import read_rgb

SIZE, COUNT = 16, 6


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8))


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(COUNT):
        path = tmp_path / "data" / "ab"[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(seed).save(path)
    return tmp_path / "data"


@pytest.fixture
def checked(folder: Path) -> Split:
    return inspect(read_dataset(folder))[0].train


def seed_of(example: Example) -> int:
    assert example.path is not None
    return int(example.path.stem)


def opened(split: Split, cache: Path, **options: Any) -> Pixels:
    options = {"budget_bytes": 10**9, "workers": 1} | options
    return open_pixels(split, SIZE, cache=cache, **options)


def assert_right(pixels: Pixels, split: Split) -> None:
    expected = [pixels_of(noise(seed_of(example))) for example in split.examples]
    np.testing.assert_array_equal(pixels.take(np.arange(len(pixels))), np.stack(expected))


def shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.rows"))


class TestWhatWasHashedIsDecoded:
    @pytest.mark.parametrize("few", [0, 1000], ids=["processes", "threads"])
    @pytest.mark.parametrize("budget", [10**9, 0], ids=["cached", "decoded each time"])
    def test_a_file_replaced_after_the_check(
        self, tmp_path: Path, checked: Split, monkeypatch: pytest.MonkeyPatch, few: int, budget: int
    ) -> None:
        monkeypatch.setattr(image_store, "_FEW", few)
        victim = checked.examples[3]
        assert victim.path is not None
        before = victim.path.read_bytes()
        noise(99).save(victim.path)
        cache = tmp_path / "cache"
        with pytest.raises(UsageError, match=f"{victim.key}: the image has changed since .* again"):
            opened(checked, cache, budget_bytes=budget).take(range(COUNT))
        assert shards(cache) == []
        victim.path.write_bytes(before)
        with opened(checked, cache, budget_bytes=budget) as pixels:
            assert_right(pixels, checked)

    def test_a_file_replaced_while_the_cache_hashes(
        self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a check before, the cache hashes the files itself, and decodes them later."""
        split = read_dataset(folder).train
        fill = image_store._fill_cache

        def replace_then_fill(*arguments: Any) -> Any:
            noise(99).save(split.examples[0].path)
            return fill(*arguments)

        monkeypatch.setattr(image_store, "_fill_cache", replace_then_fill)
        with pytest.raises(UsageError, match="has changed since it was checked"):
            opened(split, tmp_path / "cache")
        assert shards(tmp_path / "cache") == []

    def test_a_check_hashes_the_bytes_that_it_decodes(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The file is read once: whatever happens to it later, size and hash belong together."""
        victim = folder / "a" / "0.png"
        first = hashlib.sha256(victim.read_bytes()).hexdigest()
        read = Path.read_bytes

        def read_then_replace(path: Path) -> bytes:
            content = read(path)
            if path == victim:
                Image.new("RGB", (3, 3)).save(victim)
            return content

        monkeypatch.setattr(Path, "read_bytes", read_then_replace)
        images, summary = inspect(read_dataset(folder), workers=1)
        assert images.train.examples[0].sha256 == first
        assert (summary.resolution, summary.notes) == ((20, 24), ())

    def test_an_image_in_memory_that_changes(self, tmp_path: Path) -> None:
        array = np.stack([np.asarray(noise(seed)) for seed in range(4)])
        images, _ = inspect(read_dataset((array, ["a", "b", "a", "b"])))
        array[2] = 0
        with pytest.raises(UsageError, match="the image has changed since it was checked"):
            opened(images.train, tmp_path / "cache")

    def test_a_turned_image_in_memory_is_turned_once(self, tmp_path: Path) -> None:
        """Its EXIF data used to be applied again when the upright image was read again."""
        exif = Image.Exif()
        exif[0x0112] = 6
        path = tmp_path / "turned.jpg"
        noise(1).save(path, exif=exif, quality=95)
        once = read_rgb(path)
        assert once.size == (20, 24)
        np.testing.assert_array_equal(np.asarray(read_rgb(once)), np.asarray(once))


class TestDamage:
    def damage(self, path: Path, row: int, byte: int = 100) -> None:
        content = bytearray(path.read_bytes())
        content[row * SIZE * SIZE * 3 + byte] ^= 0x10
        path.write_bytes(content)

    @pytest.mark.parametrize("byte", [0, 100, SIZE * SIZE * 3 - 1])
    @pytest.mark.parametrize("row", [0, 2, COUNT - 1])
    def test_a_changed_bit_is_found_and_mended(
        self, tmp_path: Path, checked: Split, caplog: pytest.LogCaptureFixture, row: int, byte: int
    ) -> None:
        cache = tmp_path / "cache"
        opened(checked, cache).close()
        (shard,) = shards(cache)
        self.damage(shard, row, byte)
        with caplog.at_level(logging.WARNING), opened(checked, cache) as pixels:
            assert isinstance(pixels, CachedPixels)
            assert_right(pixels, checked)
            assert_right(pixels, checked)  # and once more, without another warning
        assert [record.getMessage() for record in caplog.records] == [
            f"Removed the damaged shard {shard}; its images are decoded again"
        ]
        assert shards(cache) == []
        with opened(checked, cache) as pixels:
            assert_right(pixels, checked)
        assert len(shards(cache)) == 1

    def test_two_swapped_rows(self, tmp_path: Path, checked: Split) -> None:
        cache = tmp_path / "cache"
        opened(checked, cache).close()
        (shard,) = shards(cache)
        content, step = bytearray(shard.read_bytes()), SIZE * SIZE * 3
        rows = [slice(n * step, (n + 1) * step) for n in (1, 4)]
        content[rows[0]], content[rows[1]] = content[rows[1]], content[rows[0]]
        shard.write_bytes(content)
        with opened(checked, cache) as pixels:
            assert_right(pixels, checked)

    def test_damage_by_many_threads(
        self, tmp_path: Path, checked: Split, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache = tmp_path / "cache"
        opened(checked, cache).close()
        (shard,) = shards(cache)
        for row in range(COUNT):
            self.damage(shard, row)
        expected = np.stack([pixels_of(noise(seed_of(e))) for e in checked.examples])
        gate = threading.Barrier(8)
        with opened(checked, cache) as pixels, ThreadPoolExecutor(8) as pool:

            def take(_: int) -> Any:
                gate.wait(30)
                return pixels.take(range(COUNT))

            for found in pool.map(take, range(8)):
                np.testing.assert_array_equal(found, expected)
        assert len(caplog.records) == 1  # for a shard, not for a row

    def test_a_damaged_row_whose_file_has_changed_too(self, tmp_path: Path, checked: Split) -> None:
        cache = tmp_path / "cache"
        opened(checked, cache).close()
        self.damage(shards(cache)[0], 0)
        noise(99).save(checked.examples[0].path)
        with opened(checked, cache) as pixels, pytest.raises(UsageError, match="has changed since"):
            pixels.take([0])

    def test_a_change_under_an_open_cache(
        self, tmp_path: Path, checked: Split, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Also of rows that have been read before, and of a file that is cut off: no bus error."""
        cache = tmp_path / "cache"
        with opened(checked, cache) as pixels:
            assert_right(pixels, checked)
            (shard,) = shards(cache)
            self.damage(shard, 2)
            assert_right(pixels, checked)
            assert shards(cache) == []
            assert len(caplog.records) == 1
        with opened(checked, cache) as pixels:
            assert_right(pixels, checked)
            shards(cache)[0].write_bytes(b"")
            assert_right(pixels, checked)
        assert len(caplog.records) == 2

    def test_a_change_while_a_row_is_read(
        self, tmp_path: Path, checked: Split, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is compared with the checksum is what is returned, not what the file has by then."""
        cache, value = tmp_path / "cache", google_crc32c.value
        with opened(checked, cache) as pixels:
            (shard,) = shards(cache)

            def compare_then_change(data: bytes) -> int:
                found = value(data)
                self.damage(shard, 1)
                return int(found)

            monkeypatch.setattr(google_crc32c, "value", compare_then_change)
            expected = pixels_of(noise(seed_of(checked.examples[1])))
            np.testing.assert_array_equal(pixels.take([1])[0], expected)


@pytest.mark.parametrize("harm", [False, True], ids=["whole", "damaged"])
def test_shards_of_earlier_versions(tmp_path: Path, checked: Split, harm: bool) -> None:
    """They have the hashes and checksums before the pixels. They are read as they are."""
    cache, row = tmp_path / "cache", SIZE * SIZE * 3
    opened(checked, cache).close()
    (now,) = shards(cache)
    content = bytearray(now.read_bytes())
    before = now.with_suffix(".shard")
    content[:] = content[COUNT * row :] + content[: COUNT * row]
    content[COUNT * 36 + row] ^= harm
    before.write_bytes(content)
    now.unlink()
    with opened(checked, cache) as pixels:
        assert isinstance(pixels, CachedPixels)
        assert_right(pixels, checked)
    assert shards(cache) == []
    assert before.exists() != harm
    if not harm:  # they count as the others do, and make room like them
        few, full = Split("val", checked.examples[:1]), COUNT * (row + 36)
        assert isinstance(open_pixels(few, 8, cache=cache, budget_bytes=full), CachedPixels)
        assert not before.exists()


def test_bit_depths_are_separate(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint16).reshape(SIZE, SIZE)
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    split = Split("train", (Example(0, path, key="a.png"),))
    found = {}
    for depth in (10, 12, 10):
        with opened(split, tmp_path / "cache", bit_depth=depth) as pixels:
            found[depth] = int(pixels.take([0]).max())
    assert found == {10: 63, 12: 15}
    assert [path.parent.name.split("-")[-2:] for path in shards(tmp_path / "cache")] == [
        ["10", "bit"],
        ["12", "bit"],
    ]
