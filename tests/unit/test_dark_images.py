"""Images that would come dark, flat or empty are read by one rule, named, or refused."""

import io
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from image_encodings import ENCODINGS, LOW_BITS, SAME, Encoding, scaled, thermal
from images import digits, png, write_digits
from PIL import Image

import bitzoo
from bitzoo.catalogue.metadata import Preprocessing
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.data.dataset import read_dataset
from bitzoo.data.image_store import open_pixels
from bitzoo.data.problems import DatasetError
from bitzoo.data.validation import DataSummary, inspect
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.models.preprocessing import EvalTransform, read_rgb
from bitzoo.runs.config import Callbacks

SIZE, PER_CLASS = 16, 4
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "images.md"


def drawings(digit: int) -> Iterator[np.ndarray]:
    images, labels = digits()
    for index in np.flatnonzero(labels == digit)[:PER_CLASS]:
        large = Image.fromarray(images[index]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        yield np.asarray(large)


def write(root: Path, encode: Callable[[np.ndarray], bytes], suffix: str = ".png") -> Path:
    for digit in (0, 1):
        folder = root / str(digit)
        folder.mkdir(parents=True)
        for number, grey in enumerate(drawings(digit)):
            (folder / f"{number}{suffix}").write_bytes(encode(grey))
    return root


def png_of(grey: np.ndarray, bits: int) -> bytes:
    return png(scaled(grey, bits))


def read(root: Any, cache: Path) -> tuple[np.ndarray, DataSummary]:
    images, summary = inspect(read_dataset(root), workers=1)
    options: dict[str, Any] = {"budget_bytes": 10**8, "workers": 1, "bit_depth": summary.bit_depth}
    with open_pixels(images.train, SIZE, cache=cache, **options) as pixels:
        return pixels.take(range(len(pixels))).astype(int), summary


ORIGINAL = np.stack([np.stack([g] * 3, 2) for digit in (0, 1) for g in drawings(digit)]).astype(int)


class TestEncodings:
    @pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.name)
    def test_the_same_drawing_or_refused(self, encoding: Encoding, tmp_path: Path) -> None:
        root = write(tmp_path / "data", encoding.encode, encoding.suffix)
        if encoding.outcome != SAME:
            with pytest.raises(DatasetError, match=re.escape(encoding.outcome)):
                read(root, tmp_path / "cache")
            return
        found, _ = read(root, tmp_path / "cache")
        if "black drawn" in encoding.name or encoding.name.endswith(
            ("grey drawn in alpha", "palette drawn in alpha")
        ):
            found = 255 - found  # black on white
        expected = np.where(ORIGINAL > 127, 255, 0) if "1 bit" in encoding.name else ORIGINAL
        assert np.abs(found - expected).mean() <= 4  # of a lossy format, or of 16 greys

    def test_the_documentation_has_this_list(self) -> None:
        text = DOCS.read_text(encoding="utf-8")
        rows = re.findall(r"^\| ([^|]+?) \| (same|refused)[^|]* \|$", text, re.MULTILINE)
        expected = [(e.name, "same" if e.outcome == SAME else "refused") for e in ENCODINGS]
        assert rows == expected


class TestBitDepth:
    @pytest.mark.parametrize(
        ("highest", "depth", "white"),
        [
            *((1, 8, 1), (255, 8, 255), (256, 10, 64), (1023, 10, 255), (1024, 12, 64)),
            *((4095, 12, 255), (4096, 14, 64), (16383, 14, 255), (16384, 16, 64)),
            (65535, 16, 255),
        ],
    )
    def test_is_the_smallest_that_holds_all_values(
        self, tmp_path: Path, highest: int, depth: int, white: int
    ) -> None:
        """Of the whole data set: the darker images are read with it too."""
        for name, top in (("a/dark", highest // 4), ("b/light", highest)):
            path = tmp_path / "data" / f"{name}.png"
            path.parent.mkdir(parents=True)
            ramp = np.linspace(0, top, 256).round().astype(np.uint16).reshape(16, 16)
            Image.fromarray(ramp).save(path)
        # ordinary images, so that the data set is not dark as a whole
        for number, name in enumerate(("a/plain", "b/plain")):
            plain = Image.fromarray(ORIGINAL[number].astype(np.uint8))
            plain.save(tmp_path / "data" / f"{name}.png")
        found, summary = read(tmp_path / "data", tmp_path / "cache")
        assert summary.bit_depth == depth
        dark, plain, light, _ = found
        assert light.max() == white
        assert dark.max() == (highest // 4) >> (depth - 8)
        np.testing.assert_array_equal(plain, ORIGINAL[0])
        assert summary.notes[0] == (
            f"Images of more than 8 bits per channel (2) are read as {depth}-bit values, of which "
            f"{(1 << depth) - 1:,} is white; the largest is {highest:,}."
        )

    def test_none_without_such_images(self, tmp_path: Path) -> None:
        _, summary = read(write_digits(tmp_path / "d", per_class=2), tmp_path / "cache")
        assert (summary.bit_depth, summary.notes) == (None, ())

    def test_the_held_out_images_count(self, tmp_path: Path) -> None:
        for split, bits in (("train", 10), ("val", 12)):
            write(tmp_path / split, partial(png_of, bits=bits))
            for path in (tmp_path / split).glob("*/*"):
                path.rename(path.with_name(f"{split}{path.name}"))
        _, summary = inspect(read_dataset(tmp_path), workers=1)
        assert summary.bit_depth == 12


class TestOneImage:
    GREY = png(scaled(ORIGINAL[0, :, :, 0].astype(np.uint8), 12))

    def test_is_read_as_the_training_images_were(self) -> None:
        found = np.asarray(read_rgb(self.GREY, 12)).astype(int)
        np.testing.assert_array_equal(found, ORIGINAL[0])
        found = EvalTransform(SIZE, SIZE, bit_depth=12).array(self.GREY).astype(int)
        np.testing.assert_array_equal(found, ORIGINAL[0])

    def test_of_unknown_depth_is_refused_if_it_would_be_black(self) -> None:
        top = int(scaled(ORIGINAL[0].astype(np.uint8), 12).max())
        with pytest.raises(UsageError) as caught:
            read_rgb(self.GREY)
        assert str(caught.value) == (
            f"The image cannot be used: its values of more than 8 bits go from 0 to {top:,}: "
            "expected up to 65,535. Read as 16 bits they would be nearly black, and whether white "
            "is 4,095 cannot be told from one image. Scale it to 8 bits."
        )

    def test_of_larger_values_is_refused(self) -> None:
        with pytest.raises(
            UsageError, match=r"up to [\d,]+, but white is 1,023, because .* 10 bits"
        ):
            read_rgb(self.GREY, 10)

    def test_deep_colour_of_few_bits_is_refused(self) -> None:
        colour = png(scaled(ORIGINAL[0].astype(np.uint8), 12), colour_type=2)
        with pytest.raises(UsageError, match=LOW_BITS):
            read_rgb(colour, 12)
        with pytest.raises(UsageError, match="would be nearly black"):
            read_rgb(colour)
        full = png(scaled(ORIGINAL[0].astype(np.uint8), 16), colour_type=2)
        for depth in (None, 16):
            np.testing.assert_array_equal(
                np.asarray(read_rgb(full, depth)).astype(int), ORIGINAL[0]
            )
        with pytest.raises(UsageError, match="but white is 4,095"):
            read_rgb(full, 12)


class TestTheRecord:
    WAY = Preprocessing(32, 32, "bilinear", True, "a test", bit_depth=12)

    def test_there_and_back(self) -> None:
        known = ModelInfo("R50x1", 2, preprocessing=self.WAY)
        assert known.to_dict()["preprocessing"]["bit_depth"] == 12
        assert ModelInfo.from_dict(json.loads(known.to_json())) == known
        assert "values of more than 8 bits read as 12-bit (4,095 is white)" in self.WAY.in_words()

    def test_unknown_has_no_key(self) -> None:
        way = Preprocessing(32, 32, "bilinear", True, "a test")
        record = ModelInfo("R50x1", 2, preprocessing=way).to_dict()
        assert "bit_depth" not in record["preprocessing"]
        assert ModelInfo.from_dict(record).preprocessing == way

    @pytest.mark.parametrize("value", [7, 17, "12", 12.0, True, -1])
    def test_a_hostile_one(self, value: object) -> None:
        record = ModelInfo("R50x1", 2, preprocessing=self.WAY).to_dict()
        record["preprocessing"]["bit_depth"] = value
        with pytest.raises(CheckpointError, match="bit_depth"):
            ModelInfo.from_dict(record)


def test_a_run_keeps_the_bit_depth(tmp_path: Path) -> None:
    """Training, evaluation and prediction read the same 12-bit file as the same image."""
    write_npz(tmp_path / "small.npz", make_checkpoint())
    data = write(tmp_path / "data", partial(png_of, bits=12))
    said: list[str] = []
    result = bitzoo.finetune(
        tmp_path / "small.npz",
        data,
        tmp_path / "run",
        pretrained=False,
        freeze=True,
        steps=2,
        batch_size=4,
        resolution=(32, 32),
        val_fraction=0.25,
        workers=1,
        callbacks=Callbacks(say=said.append),
    )
    assert [text for text in said if "12-bit values" in text] == [
        "Images of more than 8 bits per channel (8) are read as 12-bit values, of which 4,095 is "
        f"white; the largest is {int(scaled(ORIGINAL.max(keepdims=True), 12).max()):,}."
    ]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["bit_depth"] == 12
    assert bitzoo.info(tmp_path / "run").preprocessing.bit_depth == 12
    transform = bitzoo.create_transform(tmp_path / "run")
    assert transform.bit_depth == 12
    report = (tmp_path / "run" / "report.html").read_text()
    assert "read as 12-bit values: 4,095 is white" in report

    path = data / "1" / "0.png"
    eight = tmp_path / "eight.png"
    Image.fromarray(ORIGINAL[PER_CLASS].astype(np.uint8)).save(eight)
    beyond = tmp_path / "beyond.png"
    beyond.write_bytes(png(scaled(ORIGINAL[0, :, :, 0].astype(np.uint8), 16)))
    wide, narrow, refused = bitzoo.predict(tmp_path / "run", [path, eight, beyond], top=2)
    assert wide.guesses == narrow.guesses
    assert refused.error is not None
    assert "white is 4,095, because the images that the model was trained on have 12 bits" in (
        refused.error
    )
    found = bitzoo.evaluate(tmp_path / "run", data, split="all", workers=1)
    plain = write(tmp_path / "plain", lambda grey: _png8(grey))
    assert found.loss == bitzoo.evaluate(tmp_path / "run", plain, split="all", workers=1).loss
    assert result.folder == tmp_path / "run"


def _png8(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


class TestBlankImages:
    def arrays(self, blank: dict[int, int], count: int = 8) -> tuple[np.ndarray, list[str]]:
        """Half "a", half "b"; `blank` maps images to their one value."""
        images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
        for index, value in blank.items():
            images[index] = value
            images[index, index // 8, index % 8] += 1  # within the tolerance, and not a copy
        return images, ["a"] * (count // 2) + ["b"] * (count // 2)

    def inspected(self, blank: dict[int, int]) -> DataSummary:
        return inspect(read_dataset(self.arrays(blank)), workers=1)[1]

    def test_dark_ones_are_named_and_their_classes(self) -> None:
        """A network would tell them by their light alone."""
        images, labels = self.arrays({})
        images[4:] //= 16
        _, summary = inspect(read_dataset((images, labels)), workers=1)
        assert summary.notes == (
            "Dark images (4), in which no value is above 31 of 255: row 4, row 5, row 6, row 7.",
            "Classes of which every image is so dark (1): b. Check how these images were saved.",
        )

    @pytest.mark.parametrize("low", [100, 223])
    def test_a_flat_data_set_is_refused(self, low: int) -> None:
        images, labels = self.arrays({})
        within = [(images * np.float64(span / 255) + low).astype(np.uint8) for span in (31, 32)]
        with pytest.raises(DatasetError, match=rf"in 8 images are from {low} to {low + 31} of 255"):
            inspect(read_dataset((within[0], labels)))
        inspect(read_dataset((within[1], labels)))

    def test_one_of_16_bits_says_what_is_in_the_files(self, tmp_path: Path) -> None:
        root = write(tmp_path / "data", thermal, ".tif")
        with pytest.raises(
            DatasetError, match=r"from 113 to 1\d\d of 255; in the files, from 29,000"
        ):
            inspect(read_dataset(root))

    def test_some_are_counted_and_named(self) -> None:
        assert self.inspected({0: 0, 5: 200}).notes == (
            "Images of one single colour (2), which show nothing else: row 0, row 5.",
        )

    def test_a_class_of_nothing_else_is_named(self) -> None:
        notes = self.inspected({4: 7, 5: 7, 6: 8, 7: 7}).notes
        assert notes == (
            "Images of one single colour (4), which show nothing else: row 4, row 5, row 6, row 7.",
            "Classes of which every image has one single colour (1): b. Check how these images "
            "were saved.",
        )

    def test_most_are_refused(self) -> None:
        with pytest.raises(
            DatasetError, match="5 of 8 images have only one colour, and all #070707"
        ):
            self.inspected(dict.fromkeys((0, 1, 4, 5, 6), 7))

    def test_colours_that_differ_are_information(self) -> None:
        assert len(self.inspected({index: 30 * index for index in range(8)}).notes) == 2

    def test_a_dark_data_set_is_refused(self) -> None:
        images, labels = self.arrays({})
        with pytest.raises(DatasetError, match="largest value in 8 images is 31, and white is 255"):
            inspect(read_dataset((images // 8, labels)))
        inspect(read_dataset((np.minimum(images, 32), labels)))

    @pytest.mark.parametrize("values", [np.float32, np.uint16, bool])
    def test_arrays_of_other_types_are_refused(self, values: Any) -> None:
        images, labels = self.arrays({})
        with pytest.raises(DatasetError, match="must be uint8"):
            read_dataset((images.astype(values), labels))


class TestAlpha:
    def test_a_photograph_keeps_its_hidden_colours(self) -> None:
        image = Image.fromarray(ORIGINAL[0].astype(np.uint8))
        image.putalpha(Image.fromarray(ORIGINAL[4, :, :, 0].astype(np.uint8)))
        np.testing.assert_array_equal(np.asarray(read_rgb(image)).astype(int), ORIGINAL[0])

    @pytest.mark.parametrize(
        ("colour", "expected"),
        [((0, 0, 0), (255, 0)), ((9, 80, 200), (255, 9)), ((255,) * 3, (0, 255))],
    )
    def test_a_drawing_in_one_colour_is_composited(
        self, colour: tuple[int, ...], expected: tuple[int, int]
    ) -> None:
        image = Image.new("RGBA", (2, 1), (*colour, 0))
        image.putpixel((1, 0), (*colour, 255))
        found = read_rgb(image)
        assert tuple(np.asarray(found)[0, :, 0].tolist()) == expected


class Table:
    """As `datasets.Dataset` with a column of type `Image(mode="RGB")`, undecoded."""

    def __init__(self, contents: list[bytes]) -> None:
        feature = type("Image", (), {"mode": "RGB", "__init__": lambda self, decode=True: None})
        label = type("ClassLabel", (), {"names": ["a", "b"]})()
        self.features = {"image": feature(), "label": label}
        self.contents = contents

    def cast_column(self, column: str, feature: object) -> "Table":
        return self

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, key: Any) -> Any:
        if key == "label":
            return [index % 2 for index in range(len(self))]
        return {"image": {"bytes": self.contents[key], "path": None}}


def test_a_column_of_colour_does_not_clip_16_bit_grey(tmp_path: Path) -> None:
    greys = [g for digit in (0, 1) for g in drawings(digit)]
    found, summary = read(Table([png(scaled(grey, 12)) for grey in greys]), tmp_path / "cache")
    assert summary.bit_depth == 12
    np.testing.assert_array_equal(found, ORIGINAL)
