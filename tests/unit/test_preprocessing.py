"""Images become the same pixels as in torchvision and the same tensors as in timm."""

import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform as timm_transform
from torchvision import transforms as tv

from bitzoo.errors import LayoutError, UsageError
from bitzoo.models.preprocessing import EvalTransform, read_rgb

SIZES = [(61, 40), (40, 61), (57, 57), (150, 33), (24, 25)]


def make_image(width=61, height=40, mode="RGB", seed=0):
    """Noise: every pixel matters and nothing is symmetric."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def pixels_of(image):
    return np.asarray(image.convert("RGB"))


def saved(tmp_path, image, suffix=".png", **options):
    path = tmp_path / f"image{suffix}"
    image.save(path, **options)
    return path


def with_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def write_png(path, samples):
    """A 16-bit PNG from uint16 samples (height, width) or (height, width, 3)."""
    height, width = samples.shape[:2]
    colour_type = 2 if samples.ndim == 3 else 0
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


class TestAgainstPeers:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    def test_square_is_torchvision_resize(self, size, interpolation):
        image = make_image(*size)
        theirs = tv.Resize((32, 32), tv.InterpolationMode(interpolation))(image)
        ours = EvalTransform(32, 32, interpolation, square=True).array(image)
        np.testing.assert_array_equal(ours, np.asarray(theirs))

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize(("crop", "resize"), [(32, 32), (31, 36), (29, 36), (28, 29)])
    @pytest.mark.parametrize("square", [True, False])
    def test_resize_and_crop_are_torchvision(self, size, crop, resize, square):
        image = make_image(*size)
        edges = (resize, resize) if square else resize
        theirs = tv.Compose([tv.Resize(edges), tv.CenterCrop(crop)])(image)
        ours = EvalTransform(crop, resize, "bilinear", square).array(image)
        np.testing.assert_array_equal(ours, np.asarray(theirs))

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize(("crop", "crop_pct", "resize"), [(28, 0.875, 32), (48, 1.0, 48)])
    def test_shorter_edge_is_timm_bit_for_bit(self, size, interpolation, crop, crop_pct, resize):
        image = make_image(*size)
        theirs = timm_transform(
            input_size=(3, crop, crop),
            interpolation=interpolation,
            crop_pct=crop_pct,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )(image)
        ours = EvalTransform(crop, resize, interpolation, square=False)(image)
        assert torch.equal(ours, theirs)

    def test_every_level_is_scaled_as_in_timm(self):
        levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
        image = Image.fromarray(levels).convert("RGB")
        theirs = timm_transform((3, 16, 16), crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)(image)
        ours = EvalTransform(16, 16)(image)
        assert torch.equal(ours, theirs)
        assert ours[0, 0, 0] == -1
        assert ours[2, 15, 15] == 1


class TestTheTensor:
    def test_layout_and_values(self):
        image = Image.new("RGB", (2, 2), (255, 0, 51))
        image.putpixel((1, 0), (0, 255, 204))
        expected = torch.tensor(
            [[[1, -1], [1, 1]], [[-1, 1], [-1, -1]], [[-0.6, 0.6], [-0.6, -0.6]]],
            dtype=torch.float32,
        )
        tensor = EvalTransform(2, 2)(image)
        assert tensor.is_contiguous()
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-7)

    def test_the_image_is_unchanged(self):
        pixels = np.asarray(make_image()).copy()
        before = pixels.copy()
        EvalTransform(16, 16)(pixels).zero_()
        np.testing.assert_array_equal(pixels, before)

    def test_pickles_and_prints(self):
        transform = EvalTransform(480, 512, "bicubic", square=False)
        assert pickle.loads(pickle.dumps(transform)) == transform
        assert repr(transform) == (
            "EvalTransform(crop=480, resize=512, interpolation='bicubic', square=False, "
            "bit_depth=None)"
        )


class TestSources:
    @pytest.mark.parametrize("form", [str, lambda path: path, Image.open, read_rgb])
    def test_path_and_image_give_the_same(self, tmp_path, form):
        image = make_image()
        path = saved(tmp_path, image)
        ours = EvalTransform(32, 32).array(form(path))
        np.testing.assert_array_equal(ours, np.asarray(tv.Resize((32, 32))(image)))

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
    def test_arrays(self, mode):
        image = make_image(mode=mode)
        np.testing.assert_array_equal(pixels_of(read_rgb(np.asarray(image))), pixels_of(image))

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
    def test_modes(self, mode):
        image = make_image(mode=mode)
        np.testing.assert_array_equal(pixels_of(read_rgb(image)), pixels_of(image))

    @pytest.mark.parametrize(("mode", "expected"), [("RGBA", (9, 80, 200)), ("LA", (70, 70, 70))])
    def test_alpha_is_dropped_and_not_composited(self, mode, expected):
        colour = {"RGBA": (9, 80, 200, 0), "LA": (70, 0)}[mode]
        assert read_rgb(Image.new(mode, (2, 3), colour)).getpixel((1, 2)) == expected

    def test_a_transparent_palette_keeps_its_colours(self, tmp_path):
        colours = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
        image = Image.new("P", (3, 1))
        image.putpalette([value for colour in colours for value in colour])
        image.putdata([0, 1, 2])
        path = saved(tmp_path, image, transparency=b"\x00\x80\xff")
        np.testing.assert_array_equal(np.asarray(read_rgb(path)), [colours])

    def test_16_bit_grey_keeps_the_high_byte_like_16_bit_rgb(self, tmp_path):
        grey = np.random.default_rng(1).integers(0, 65536, (9, 7), dtype=np.uint16)
        grey[0, :5] = 0, 255, 256, 257 * 128, 65535
        rgb = write_png(tmp_path / "rgb.png", np.stack([grey] * 3, axis=2))
        decoded_by_pillow = np.asarray(Image.open(rgb))
        assert decoded_by_pillow[0, :5, 0].tolist() == [0, 0, 1, 128, 255]
        ours = read_rgb(write_png(tmp_path / "grey.png", grey))
        np.testing.assert_array_equal(np.asarray(ours), decoded_by_pillow)

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
    def test_every_16_bit_mode(self, mode):
        dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
        values = np.array([[0, 300, 65535]], dtype)
        image = Image.frombytes(mode, (3, 1), values.tobytes())
        assert np.asarray(read_rgb(image))[0, :, 1].tolist() == [0, 1, 255]

    @pytest.mark.parametrize(
        ("values", "mode"),
        [
            (np.array([[0.0, 0.5]], np.float32), "F"),
            (np.array([[0, 70000]], np.int32), "I"),
            (np.array([[-1, 5]], np.int32), "I"),
        ],
    )
    def test_values_without_a_defined_white_are_refused(self, values, mode):
        with pytest.raises(UsageError, match=f"mode '{mode}' with values .* Scale it to 8 bits"):
            read_rgb(Image.fromarray(values))


UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}
"""EXIF orientation (tag 0x0112) -> the turn that makes the image upright, in NumPy."""


class TestOrientation:
    @pytest.mark.parametrize("suffix", [".png", ".tiff", ".webp"])
    @pytest.mark.parametrize("orientation", UPRIGHT)
    def test_is_applied_once(self, tmp_path, orientation, suffix):
        image = make_image()
        lossless = {"lossless": True} if suffix == ".webp" else {}
        path = saved(tmp_path, image, suffix, exif=with_orientation(orientation), **lossless)
        upright = UPRIGHT[orientation](np.asarray(image))
        np.testing.assert_array_equal(np.asarray(read_rgb(path)), upright)
        with Image.open(path) as opened:
            np.testing.assert_array_equal(np.asarray(read_rgb(opened)), upright)

    @pytest.mark.parametrize("exif", [b"Exif\0\0garbage", with_orientation(99).tobytes()])
    def test_damaged_exif_leaves_the_orientation(self, tmp_path, exif):
        image = make_image()
        path = saved(tmp_path, image, ".webp", lossless=True, exif=exif)
        np.testing.assert_array_equal(np.asarray(read_rgb(path)), np.asarray(image))


class TestErrors:
    @pytest.mark.parametrize(("crop", "resize"), [(33, 32), (0, 32), (-1, 4)])
    def test_sizes(self, crop, resize):
        with pytest.raises(UsageError, match=f"found crop={crop} and resize={resize}"):
            EvalTransform(crop, resize)

    def test_interpolation(self):
        with pytest.raises(
            UsageError, match="`interpolation` must be one of bilinear, bicubic, found 'lanczos'"
        ):
            EvalTransform(32, 32, "lanczos")

    @pytest.mark.parametrize(
        "pixels",
        [
            np.zeros((3, 8, 8), np.uint8),
            np.zeros((8, 8, 3), np.float32),
            np.zeros((8, 8, 2), np.uint8),
            np.zeros((0, 8, 3), np.uint8),
            np.zeros((1, 8, 8, 3), np.uint8),
        ],
    )
    def test_arrays(self, pixels):
        with pytest.raises(LayoutError, match=r"uint8 with shape .*, found .* Move channels last"):
            read_rgb(pixels)

    def test_other_types(self):
        with pytest.raises(UsageError, match=r"PIL image, .* or a path, found Tensor"):
            read_rgb(torch.zeros(3, 8, 8))  # type: ignore[arg-type]

    def test_empty_image(self):
        with pytest.raises(UsageError, match="is empty: its size is 0x4"):
            read_rgb(Image.new("RGB", (0, 4)))

    def test_missing_file(self, tmp_path):
        with pytest.raises(UsageError, match=r"none\.png' cannot be read: .*No such file"):
            read_rgb(tmp_path / "none.png")

    def test_not_an_image(self, tmp_path):
        path = tmp_path / "notes.jpg"
        path.write_text("not an image")
        with pytest.raises(UsageError, match=r"notes\.jpg' cannot be read: .*cannot identify"):
            read_rgb(path)

    def test_truncated_file(self, tmp_path):
        path = saved(tmp_path, make_image(200, 200))
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(UsageError, match=r"image\.png' cannot be read: .*truncated"):
            read_rgb(path)

    def test_too_narrow_to_resize(self):
        sliver = Image.new("L", (1, 60000))
        with pytest.raises(UsageError, match="1x60000 pixels is too narrow"):
            EvalTransform(224, 256, square=False)(sliver)
        assert EvalTransform(2, 2, square=True).array(sliver).tolist() == [[[0] * 3] * 2] * 2
