"""Cached pixels equal decoded pixels, whatever happens while the cache is built."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import google_crc32c
import numpy as np
import pytest
from PIL import Image, ImageFile
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from bitzoo.data import image_store, pixel_cache
from bitzoo.data.dataset import Example, Split
from bitzoo.data.decode_workers import Decoder
from bitzoo.data.image_store import CachedPixels, DecodingPixels, open_pixels
from bitzoo.errors import UsageError
from bitzoo.models.preprocessing import EvalTransform

SIZE = 16
ROW = SIZE * SIZE * 3
LOTS = 10**9


def noise(width, height, seed):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def split_of(paths):
    return Split("train", tuple(Example(0, Path(path), key=Path(path).name) for path in paths))


def resized(image):
    """The oracle: torchvision, on what Pillow converts to RGB."""
    interpolation = InterpolationMode.BILINEAR
    return np.asarray(tv.resize(image.convert("RGB"), [SIZE, SIZE], interpolation))


@pytest.fixture
def folder(tmp_path):
    """Twelve PNGs of different shapes."""
    for i in range(12):
        save(tmp_path / "data" / f"{i:02}.png", noise(20 + 5 * i, 50 - 3 * i, i))
    return tmp_path / "data"


@pytest.fixture
def split(folder):
    return split_of(sorted(folder.iterdir()))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "pixels"


@pytest.fixture
def opened(cache):
    """Open pixels, record what was decoded, and close them at the end."""
    handles = []

    def open_(split, size=SIZE, budget_bytes=LOTS, workers=1, **options):
        calls = []
        options.setdefault("progress", lambda *call: calls.append(call))
        options.setdefault("cache", cache)
        handle = open_pixels(split, size, budget_bytes=budget_bytes, workers=workers, **options)
        handles.append(handle)
        decoded = [call for call in calls if call[0] == "decoding"]
        handle.decoded = len(decoded)  # type: ignore[attr-defined]  # for the tests alone
        assert [call[1:] for call in decoded] == [
            (i + 1, len(decoded)) for i in range(len(decoded))
        ]
        return handle

    yield open_
    for handle in handles:
        handle.close()


def shard_files(cache):
    return sorted(cache.glob("*/*.rows"))


def all_of(handle):
    return handle.take(np.arange(len(handle)))


def expected_of(split):
    return np.stack([resized(Image.open(example.path)) for example in split.examples])


def every_mode(folder):
    """Name -> (file, the expected RGB image)."""
    rgb = noise(40, 30, 99)
    grey = rgb.convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 256 + 77
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by 90 degrees clockwise
    clear = rgb.quantize(16)
    clear.info["transparency"] = 3
    jpeg = save(folder / "colour.jpg", rgb, quality=90)
    rotated = save(folder / "turned.png", rgb, exif=turned)
    cmyk = save(folder / "cmyk.tif", rgb.convert("CMYK"))
    alpha = rgb.copy()
    alpha.putalpha(grey)
    return {
        "RGB": (save(folder / "rgb.png", rgb), rgb),
        "L": (save(folder / "grey.png", grey), grey),
        "1": (save(folder / "bits.png", rgb.convert("1")), rgb.convert("1")),
        "LA": (save(folder / "la.png", alpha.convert("LA")), grey),
        "RGBA": (save(folder / "rgba.png", alpha), rgb),
        "P": (save(folder / "palette.png", rgb.quantize(16)), rgb.quantize(16)),
        "P, clear": (save(folder / "clear.png", clear), rgb.quantize(16)),
        "I;16": (save(folder / "deep.png", Image.fromarray(deep)), grey),
        "CMYK": (cmyk, Image.open(cmyk)),
        "JPEG": (jpeg, Image.open(jpeg)),
        "EXIF": (rotated, rgb.transpose(Image.Transpose.ROTATE_270)),
    }


class TestBytes:
    @pytest.mark.parametrize("processes", [True, False], ids=["processes", "threads"])
    def test_every_mode_cached_or_not_equals_torchvision(
        self, tmp_path, opened, monkeypatch, processes
    ):
        monkeypatch.setattr(image_store, "_FEW", 0 if processes else 1000)
        modes = every_mode(tmp_path / "modes")
        split = split_of([path for path, _ in modes.values()])
        cached, decoding = opened(split, workers=2), opened(split, budget_bytes=0, workers=2)
        assert (type(cached), type(decoding)) == (CachedPixels, DecodingPixels)
        assert len(cached) == len(decoding) == cached.decoded == len(modes)
        first, second = all_of(cached), all_of(decoding)
        for number, (mode, (_, meant)) in enumerate(modes.items()):
            np.testing.assert_array_equal(first[number], resized(meant), mode)
            np.testing.assert_array_equal(second[number], resized(meant), mode)

    def test_any_order_with_repeats_and_into_an_array(self, split, opened):
        chosen = [7, 0, 7, 11, 3]
        expected = expected_of(split)[chosen]
        for budget in (LOTS, 0):
            handle = opened(split, budget_bytes=budget)
            np.testing.assert_array_equal(handle.take(np.array(chosen)), expected)
            out = np.zeros((5, SIZE, SIZE, 3), np.uint8)
            assert handle.take(chosen, out) is out
            np.testing.assert_array_equal(out, expected)
            assert handle.take([]).shape == (0, SIZE, SIZE, 3)

    def test_images_in_memory(self, opened):
        images = [noise(30, 20 + i, i) for i in range(5)]
        examples = [
            Example(0, load=partial(images.__getitem__, i), key=f"row {i}") for i in range(5)
        ]
        split = Split("train", tuple(examples))
        cached, decoding = opened(split), opened(split, budget_bytes=0)
        assert isinstance(cached, CachedPixels)
        expected = np.stack([resized(image) for image in images])
        np.testing.assert_array_equal(all_of(cached), expected)
        np.testing.assert_array_equal(all_of(decoding), expected)
        assert opened(split).decoded == 0

    @pytest.mark.parametrize("number", [-1, 12])
    def test_numbers_that_do_not_exist(self, split, opened, number):
        for budget in (LOTS, 0):
            with pytest.raises(
                IndexError, match=rf"Image indices must be in 0\.\.11, found .*{number}"
            ):
                opened(split, budget_bytes=budget).take([0, number])

    @pytest.mark.parametrize("processes", [True, False], ids=["processes", "threads"])
    @pytest.mark.parametrize("square", [True, False], ids=["both edges", "shorter edge"])
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    def test_any_preprocessing_equals_torchvision(
        self, split, opened, monkeypatch, processes, square, interpolation
    ):
        monkeypatch.setattr(image_store, "_FEW", 0 if processes else 1000)
        transform = EvalTransform(14, 18, interpolation, square=square)
        edges = [18, 18] if square else [18]
        images = [
            np.asarray(
                tv.center_crop(
                    tv.resize(Image.open(e.path), edges, InterpolationMode(interpolation)), [14, 14]
                )
            )
            for e in split.examples
        ]
        expected = np.stack(images)
        for budget in (LOTS, 0):
            handle = opened(split, transform, budget, workers=2)
            assert handle.size == 14
            np.testing.assert_array_equal(all_of(handle), expected)

    def test_each_preprocessing_has_a_cache_of_its_own(self, split, opened, cache):
        ways = [
            EvalTransform(16, 16),
            EvalTransform(16, 18),
            EvalTransform(16, 18, square=False),
            EvalTransform(16, 16, square=False),
            EvalTransform(16, 16, "bicubic"),
            EvalTransform(16, 18, "bicubic", square=False),
            EvalTransform(16, 18, "bicubic", square=False, bit_depth=12),
        ]
        first = [all_of(opened(split, way)) for way in ways]
        assert len({path.parent for path in shard_files(cache)}) == len(ways)
        for way, pixels in zip(ways, first, strict=True):
            handle = opened(split, way)
            assert handle.decoded == 0
            np.testing.assert_array_equal(all_of(handle), pixels)
        assert opened(split, 16).decoded == 0  # the rule of the fine-tuner, as a number

    def test_a_size_below_one(self, split, cache):
        with pytest.raises(UsageError, match="at least 1 pixel, found 0"):
            open_pixels(split, 0, cache=cache, budget_bytes=LOTS)


class TestSharing:
    def test_other_splits_choices_and_places_decode_only_what_is_new(
        self, split, folder, opened, cache
    ):
        few = Split("train", split.examples[2:6])
        assert opened(few).decoded == 4
        rest = Split("val", split.examples[::-1])
        assert opened(rest).decoded == 8
        elsewhere = folder.rename(folder.with_name("moved"))
        moved = split_of(sorted(elsewhere.iterdir()))
        handle = opened(moved)
        assert handle.decoded == 0
        np.testing.assert_array_equal(all_of(handle), expected_of(moved))
        # a shard has hashes, checksums and pixels only, and nothing is stored twice
        assert sum(path.stat().st_size for path in shard_files(cache)) == 12 * (36 + ROW)

    def test_equal_contents_share_a_row_and_changed_contents_do_not(self, split, folder, opened):
        (folder / "copy.png").write_bytes((folder / "03.png").read_bytes())
        both = split_of(sorted(folder.iterdir()))
        handle = opened(both)
        assert (len(handle), handle.decoded) == (13, 12)
        np.testing.assert_array_equal(all_of(handle), expected_of(both))
        save(folder / "03.png", noise(33, 44, 1234))
        changed = opened(both)
        assert changed.decoded == 1
        np.testing.assert_array_equal(all_of(changed), expected_of(both))

    def test_given_hashes_are_trusted(self, split, opened, cache):
        digests = [hashlib.sha256(e.path.read_bytes()).hexdigest() for e in split.examples]
        handle = opened(split)
        hashed = [
            Example(0, e.path.with_name("gone"), sha256=digest)
            for e, digest in zip(split.examples, digests, strict=True)
        ]
        assert opened(Split("val", tuple(hashed))).decoded == 0
        (shard,) = shard_files(cache)
        raw = shard.read_bytes()
        assert raw[12 * ROW : 12 * (ROW + 32)].hex() == "".join(digests)
        sums = [google_crc32c.value(row.tobytes()) for row in all_of(handle)]
        assert raw[12 * (ROW + 32) :] == b"".join(crc.to_bytes(4, "little") for crc in sums)
        assert raw[: 12 * ROW] == all_of(handle).tobytes()

    def test_sizes_and_decoders_are_separate(self, split, opened, monkeypatch):
        assert opened(split).decoded == 12
        assert opened(split, size=8).decoded == 12
        assert opened(split).decoded == 0
        monkeypatch.setattr(pixel_cache, "DECODER", "pillow-99-1")
        assert opened(split).decoded == 12

    def test_a_data_set_uses_as_many_shards_as_it_needs(self, split, opened, cache, monkeypatch):
        monkeypatch.setattr(pixel_cache, "SHARD_BYTES", 5 * ROW)
        handle = opened(split)
        assert [path.stem[-2:] for path in shard_files(cache)].count("-5") == 2
        assert len(shard_files(cache)) == 3
        np.testing.assert_array_equal(all_of(handle), expected_of(split))

    def test_what_is_cached_needs_no_lock_and_no_budget(self, split, opened, monkeypatch):
        opened(split)
        monkeypatch.setattr(image_store, "file_lock", None)
        assert isinstance(opened(split, budget_bytes=1), CachedPixels)


class TestBudget:
    def test_a_data_set_over_the_budget_is_decoded_each_time(self, split, opened, cache, caplog):
        handle = opened(split, budget_bytes=12 * (ROW + 36) - 1)
        assert isinstance(handle, DecodingPixels)
        assert "may hold 0.0 GB in all; raise `cache_gb` or free some disk space" in caplog.text
        assert shard_files(cache) == []
        np.testing.assert_array_equal(all_of(handle), expected_of(split))
        assert isinstance(opened(split, budget_bytes=12 * (ROW + 36)), CachedPixels)

    def test_a_full_disk_is_detected_in_advance(self, split, opened, cache, monkeypatch):
        needed, reserve = 12 * (ROW + 36), pixel_cache.RESERVE_BYTES
        for free, kind in (
            (needed + reserve - 1, DecodingPixels),
            (needed + reserve, CachedPixels),
        ):
            usage = SimpleNamespace(free=free)
            monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
            handle = opened(split)
            assert type(handle) is kind
            np.testing.assert_array_equal(all_of(handle), expected_of(split))

    def test_a_disk_that_fills_up_during_the_build(self, split, opened, cache, monkeypatch, caplog):
        def full(descriptor, data, offset):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "pwrite", full)
        handle = opened(split)
        assert isinstance(handle, DecodingPixels)
        assert "No space left on device" in caplog.text
        assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size]
        np.testing.assert_array_equal(all_of(handle), expected_of(split))

    def test_a_cache_that_cannot_be_written(self, split, opened, tmp_path, caplog):
        (tmp_path / "file").write_text("")
        handle = opened(split, cache=tmp_path / "file" / "pixels")
        assert isinstance(handle, DecodingPixels)
        assert "Images are decoded at every step: the cache" in caplog.text
        np.testing.assert_array_equal(all_of(handle), expected_of(split))

    def test_the_least_recently_used_shard_is_removed_first(self, split, opened, cache):
        parts = [Split("train", split.examples[i : i + 3]) for i in (0, 3, 6)]
        for age, part in zip((30, 20, 10), parts, strict=True):
            before = set(shard_files(cache))
            opened(part).close()
            (new,) = set(shard_files(cache)) - before
            os.utime(new, (time.time() - age, time.time() - age))
        opened(parts[0]).close()  # now it is the most recently used
        budget = 9 * (ROW + 36)
        assert opened(Split("train", split.examples[9:]), budget_bytes=budget).decoded == 3
        assert opened(parts[0]).decoded == 0
        assert opened(parts[2]).decoded == 0
        assert opened(parts[1]).decoded == 3

    def test_shards_in_use_stay(self, split, opened, cache):
        train, val = (Split("train", split.examples[a:b]) for a, b in ((0, 8), (8, 12)))
        in_use = opened(train)
        assert isinstance(opened(val, budget_bytes=8 * (ROW + 36)), DecodingPixels)
        assert opened(train).decoded == 0
        in_use.close()

    def test_nothing_is_removed_in_vain(self, split, opened, cache):
        opened(Split("train", split.examples[:4])).close()
        opened(Split("train", split.examples[4:]), budget_bytes=7 * (ROW + 36))
        assert len(shard_files(cache)) == 1


class TestDamage:
    @pytest.mark.parametrize("harm", ["cut", "longer", "empty", "hashes", "count"])
    def test_a_damaged_shard_is_rebuilt(self, split, opened, cache, caplog, harm):
        opened(split).close()
        (shard,) = shard_files(cache)
        good = shard.read_bytes()
        harmed = {
            "cut": good[:-1],
            "longer": good + b"\0",
            "empty": b"",
            "hashes": good[: 12 * ROW] + bytes(32) + good[12 * ROW + 32 :],
            "count": good,
        }
        shard.write_bytes(harmed[harm])
        if harm == "count":
            shard.rename(shard.with_name(shard.name.replace("-12", "-x")))
        handle = opened(split)
        assert handle.decoded == 12
        assert "Removed the damaged shard" in caplog.text
        assert [path.read_bytes() for path in shard_files(cache)] == [good]
        np.testing.assert_array_equal(all_of(handle), expected_of(split))

    @pytest.mark.parametrize("processes", [True, False], ids=["processes", "threads"])
    def test_an_image_that_cannot_be_decoded_is_named_and_nothing_is_kept(
        self, split, opened, cache, monkeypatch, processes
    ):
        monkeypatch.setattr(image_store, "_FEW", 0 if processes else 1000)
        path = split.examples[5].path
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(UsageError, match=r"05\.png: The image .* cannot be read"):
            opened(split)
        assert list(cache.glob("*/*")) == []
        decoding = opened(split, budget_bytes=0)
        with pytest.raises(UsageError, match=r"05\.png: The image .* cannot be read"):
            decoding.take([5])
        good = split.examples[6:]
        np.testing.assert_array_equal(
            decoding.take(range(6, 12)), np.stack([resized(Image.open(e.path)) for e in good])
        )

    def test_a_file_that_is_gone(self, split, opened):
        split.examples[5].path.unlink()
        with pytest.raises(UsageError, match=r"05\.png' cannot be read: .*No such file"):
            opened(split)

    def test_an_empty_example(self, opened):
        with pytest.raises(UsageError, match="must have a path or a load function"):
            opened(Split("train", (Example(0, key="row 1"),)))


SCRIPT = """
import hashlib, json, sys, time
from pathlib import Path
import numpy as np
from bitzoo.data import image_store, pixel_cache
from bitzoo.data.dataset import Example, Split

cache, data, pause_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
image_store._FEW = 0
pixel_cache.SHARD_ROWS = 5
examples = tuple(Example(0, path, key=path.name) for path in sorted(data.iterdir()))
decoded = 0

def progress(task, done, total):
    global decoded
    decoded += task == "decoding"
    if decoded == pause_at:
        print("paused", flush=True)
        time.sleep(60)
    time.sleep(0.02)

handle = image_store.open_pixels(Split("train", examples), 16, cache=cache, budget_bytes=10**9,
                                 workers=2, progress=progress)
taken = handle.take(np.arange(len(handle))).tobytes()
print(json.dumps([decoded, hashlib.sha256(taken).hexdigest(), "torch" in sys.modules]))
"""


@pytest.fixture
def script(tmp_path, cache, folder):
    """Start a user's script without a `__main__` guard, whose cache has shards of five images."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    processes = []

    def start(pause_at=-1):
        command = [sys.executable, str(path), str(cache), str(folder), str(pause_at)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


class TestProcesses:
    def test_two_processes_build_once(self, script, split, cache):
        both = [script(), script()]
        answers = []
        for process in both:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            answers.append(json.loads(out))
        digest = hashlib.sha256(expected_of(split).tobytes()).hexdigest()
        assert sorted(answers) == [[0, digest, False], [12, digest, False]]
        assert len(shard_files(cache)) == 3

    def test_a_killed_build_is_continued(self, script, split, opened, cache):
        process = script(pause_at=7)
        assert process.stdout.readline() == "paused\n"
        process.send_signal(signal.SIGKILL)
        # The worker processes have the same stderr: this returns when they have ended, too.
        assert process.communicate(timeout=30)[1] == ""
        assert len(shard_files(cache)) == 1
        assert len(list(cache.glob("*/.bitzoo-*.tmp"))) == 1
        handle = opened(split)
        assert handle.decoded == 7
        assert list(cache.glob("*/.bitzoo-*.tmp")) == []
        np.testing.assert_array_equal(all_of(handle), expected_of(split))

    def test_a_worker_that_dies_is_reported_and_replaced(self, split, tmp_path):
        decoder = Decoder(SIZE, 1)
        first, second = split.examples[:2]
        np.testing.assert_array_equal(decoder.decode(first), resized(Image.open(first.path)))
        (worker,) = decoder._started
        worker._process.kill()
        with pytest.raises(UsageError, match=r"00\.png' cannot be decoded: .* status -9"):
            decoder.decode(first)
        np.testing.assert_array_equal(decoder.decode(second), resized(Image.open(second.path)))
        decoder.close()
        assert worker._process.poll() == -9

    def test_formats_that_only_this_process_knows(self, tmp_path, monkeypatch):
        class Flat(ImageFile.ImageFile):
            format = "FLAT"

            def _open(self):
                if self.fp.read(4) != b"FLAT":
                    raise SyntaxError("not FLAT")
                self._mode, self._size = "RGB", (2, 1)
                self.tile = [ImageFile._Tile("raw", (0, 0, 2, 1), 4, ("RGB", 0, 1))]

        Image.init()
        monkeypatch.setattr(Image, "OPEN", {**Image.OPEN, "FLAT": (Flat, None)})
        monkeypatch.setattr(Image, "ID", [*Image.ID, "FLAT"])
        path = tmp_path / "a.flat"
        path.write_bytes(b"FLAT" + bytes([10, 20, 30, 10, 20, 30]))
        decoder = Decoder(SIZE, 1)
        decoded = decoder.decode(Example(0, path, key="a.flat"))
        decoder.close()
        np.testing.assert_array_equal(decoded, np.broadcast_to([10, 20, 30], (SIZE, SIZE, 3)))

    def test_names_of_any_bytes_and_relative_ones(self, tmp_path, monkeypatch):
        name = os.fsdecode(b"\xff\xe4 \n'\".png")
        path = save(tmp_path / name, noise(30, 20, 0), format="PNG")
        monkeypatch.chdir(tmp_path)
        decoder = Decoder(SIZE, 1)
        decoded = decoder.decode(Example(0, Path(name), key="odd"))
        decoder.close()
        np.testing.assert_array_equal(decoded, resized(Image.open(path)))


def test_an_empty_split(opened):
    handle = opened(Split("val", ()))
    assert len(handle) == 0
    assert handle.take([]).shape == (0, SIZE, SIZE, 3)
