"""Image files: which formats are read, by whom, and with how much memory."""

import io
import os
import stat
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile, UnidentifiedImageError, features

from bitzoo.data.dataset import Example
from bitzoo.data.decode_workers import Decoder
from bitzoo.data.hf_datasets import read_table
from bitzoo.data.image_check import check_image
from bitzoo.data.problems import Reason
from bitzoo.errors import UsageError
from bitzoo.inference.predict import _load, find_images
from bitzoo.models import image_files
from bitzoo.models.image_files import FORMATS, ImageTooLargeError, open_image
from bitzoo.models.preprocessing import EvalTransform, read_rgb
from bitzoo.runs.report.html import _data_uri

RNG = np.random.default_rng(19)
PIXELS = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
showpage
%%EOF
"""
TRANSFORM = EvalTransform(crop=16, resize=16)


def as_dos_eps(content):
    """The binary form, with a header that points at the PostScript."""
    return struct.pack("<IIIIIIIH", 0xC6D3D0C5, 30, len(content), 0, 0, 0, 0, 0xFFFF) + content


def in_iptc(content):
    """As the picture of an IPTC record, which Pillow opens by content again."""

    def field(record, dataset, data):
        return struct.pack(">BBBH", 0x1C, record, dataset, len(data)) + data

    head = field(3, 20, b"\0\x20") + field(3, 30, b"\0\x18") + field(3, 60, b"\1\0")
    return head + field(3, 120, b"\1") + field(8, 10, content)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A `gs` on the PATH that leaves a mark if it is ever started; returns whether it was."""
    folder, mark = tmp_path / "programs", tmp_path / "started"
    folder.mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        program = folder / name
        program.write_text(f"#!/bin/sh\ntouch {mark}\nexit 0\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return mark.exists


FILES = {
    "postscript": POSTSCRIPT,
    "dos": as_dos_eps(POSTSCRIPT),
    "iptc": in_iptc(POSTSCRIPT),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["photo.jpg", "photo.eps"])
def test_ghostscript_is_never_started(tmp_path, ghostscript, kind, name):
    path = tmp_path / name
    path.write_bytes(FILES[kind])
    with pytest.raises(UsageError, match=f"{name}.* expected an image file of a format that is"):
        read_rgb(path)
    assert "expected an image file of a format" in _load(path, TRANSFORM)
    assert check_image(Example(0, path, key=name)).reason is Reason.NO_IMAGE
    decoder = Decoder(16, 1)
    with pytest.raises(UsageError, match="expected an image file of a format"):
        decoder.decode(Example(0, path, key=name))
    decoder.close()
    with pytest.raises(UnidentifiedImageError):
        _data_uri(FILES[kind])
    assert not ghostscript()


class Feature:
    def __init__(self, decode=True, mode=None):
        self.decode, self.mode = decode, mode


class Table:
    """As `datasets.Dataset` is: rows are decoded by Pillow, unless the column is cast."""

    def __init__(self, contents, mode=None, decode=True):
        image = type("Image", (Feature,), {})(decode, mode)
        label = type("ClassLabel", (), {"names": ["a", "b"]})()
        self.features = {"image": image, "label": label}
        self.contents = contents

    def cast_column(self, column, feature):
        assert column == "image"
        return Table(self.contents, decode=feature.decode)

    def __len__(self):
        return len(self.contents)

    def __getitem__(self, key):
        if key == "label":
            return [index % 2 for index in range(len(self))]
        content = self.contents[key]
        if not self.features["image"].decode:
            return {"image": {"bytes": content, "path": None}}
        image = Image.open(io.BytesIO(content))
        image.load()
        return {"image": image}


def test_rows_of_a_data_set_start_no_ghostscript(ghostscript):
    good = io.BytesIO()
    Image.fromarray(PIXELS).save(good, "PNG")
    rows = read_table(Table([POSTSCRIPT, good.getvalue()]), "hf:x").rows
    with pytest.raises(UnidentifiedImageError):
        rows[0].load()
    assert np.array_equal(np.array(read_rgb(rows[1].load())), PIXELS)
    grey = read_table(Table([good.getvalue()], mode="L"), "hf:x").rows[0].load()
    assert grey.mode == "L"
    lazy = Image.open(io.BytesIO(POSTSCRIPT))  # somebody else opened it, and nothing decoded it
    with pytest.raises(UsageError, match="format EPS, whose decoder is not run"):
        read_rgb(lazy)
    assert not ghostscript()


def test_the_suffixes_are_those_of_the_formats(tmp_path):
    for name in ("a.jpg", "b.PNG", "c.eps", "d.ps", "e.wmf", "f.tif", "g.pdf", "h.webp", "i.fits"):
        (tmp_path / name).write_bytes(b"x")
    found = [path.name for path in find_images([tmp_path])]
    assert found == ["a.jpg", "b.PNG", "f.tif", "h.webp"]


def test_a_format_that_the_user_registered_is_read(tmp_path, monkeypatch):
    class Mine(ImageFile.ImageFile):
        format, format_description = "MINE", "mine"

        def _open(self):
            assert self.fp.read(4) == b"MINE"
            self._size, self._mode = (2, 2), "RGB"
            tiles: Any = [("raw", (0, 0, 2, 2), 4, ("RGB", 0, 1))]  # as users write them
            self.tile = tiles

    path = tmp_path / "a.mine"
    path.write_bytes(b"MINE" + bytes(range(12)))
    with pytest.raises(UsageError, match="of a format that is read"):
        read_rgb(path)
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    Image.register_open("MINE", Mine, lambda head: head.startswith(b"MINE"))
    assert np.array(read_rgb(path)).reshape(-1).tolist() == list(range(12))


# --- one verdict ----------------------------------------------------------------------------------


def write_all(folder):
    """A picture of each format, and of the modes and extras that decode differently."""
    image = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(RNG.integers(0, 1 << 16, (24, 32), dtype=np.uint16))

    def more():  # new pictures each time: Pillow keeps a JPEG's options in those that it saved
        return {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}

    wanted: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.jpg": (image, {"exif": exif}),
        "progressive.jpg": (image, {"progressive": True}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "phone.mpo": (image, more()),
        "rgb.png": (image, {"exif": exif}),
        "palette.png": (image.convert("P"), {"transparency": 3}),
        "alpha.png": (image.convert("RGBA"), {}),
        "deep.png": (deep, {}),
        "moving.png": (image, more()),
        "rgb.gif": (image.convert("P"), {}),
        "moving.gif": (image.convert("P"), more()),
        "rgb.bmp": (image, {}),
        "rgb.tif": (image, {}),
        "lzw.tif": (image, {"compression": "tiff_lzw"}),
        "jpeg.tif": (image, {"compression": "jpeg"}),
        "pages.tif": (image, more()),
        "rgb.webp": (image, {"exif": exif}),
        "moving.webp": (image, more()),
        "rgb.avif": (image, {}),
        "rgb.jp2": (image, {}),
        "rgb.ppm": (image, {}),
        "deep.pgm": (deep, {}),
        "rgb.tga": (image, {}),
        "rgb.pcx": (image, {}),
        "rgb.sgi": (image, {}),
    }
    needs = {".avif": "avif", ".jp2": "jpg_2000", ".webp": "webp"}
    for name, (picture, options) in wanted.items():
        needed = needs.get(os.path.splitext(name)[1])
        if needed is None or features.check(needed):
            picture.copy().save(folder / name, **options)
    return sorted(folder.iterdir())


def mutate(content, rng):
    """Flip bits, overwrite, cut, insert or repeat: one to four times."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(data) or 1))
        match rng.integers(0, 6):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ (1 << int(rng.integers(0, 8)))])
            case 1:
                data[at : at + 4] = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
            case 2:
                data[at : at + int(rng.integers(1, 64))] = b""
            case 3:
                data[at:at] = rng.integers(0, 256, 8, dtype=np.uint8).tobytes()
            case 4:
                data[at : at + 4] = [b"\0\0\0\0", b"\xff\xff\xff\xff"][int(rng.integers(0, 2))]
            case 5:
                head = int(rng.integers(0, min(len(data), 64)))
                data[head : head + 1] = rng.integers(0, 256, 1, dtype=np.uint8).tobytes()
        if not data:
            break
    return bytes(data)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("pictures"))


def test_every_picture_is_as_pillow_decodes_it(pictures):
    for path in pictures:
        found = np.array(read_rgb(path))
        with Image.open(path) as image:
            expected = {"rgb.jpg": 1, "rgb.png": 1, "rgb.webp": 1}.get(path.name)
            image.load()
            if image.mode.startswith("I"):
                plain = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, 2)
            else:
                plain = np.array(image.convert("RGBA").convert("RGB"))
        assert np.array_equal(found, np.rot90(plain, -1) if expected else plain), path.name
        again = TRANSFORM.array(path)
        assert np.array_equal(again, TRANSFORM.array(found)), path.name


@pytest.mark.slow
def test_training_and_prediction_agree_on_damaged_pictures(pictures, tmp_path):
    """Whatever can be decoded is fine to both; several frames only make training ask which."""
    rng = np.random.default_rng(5)
    path = tmp_path / "x"
    verdicts = {True: 0, False: 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for picture in pictures:
            content = picture.read_bytes()
            for number in range(60):
                path.write_bytes(mutate(content, rng))
                check = check_image(Example(0, path, key="x"))
                trained = check.reason in (None, Reason.ANIMATED)
                predicted = not isinstance(_load(path, TRANSFORM), str)
                assert trained == predicted, (picture.name, number, check)
                verdicts[trained] += 1
    assert min(verdicts.values()) > 200


@pytest.mark.parametrize("name", ["moving.gif", "pages.tif", "moving.png"])
def test_a_damaged_second_frame_is_no_frame(pictures, tmp_path, name):
    """Once, counting the frames made a file damaged whose picture is whole."""
    picture = next(path for path in pictures if path.name == name)
    content = picture.read_bytes()
    path, seen = tmp_path / name, set()
    whole = TRANSFORM.array(picture)
    for stop in range(len(content) - 1, len(content) // 3, -7):
        path.write_bytes(content[:stop])
        loaded = _load(path, TRANSFORM)
        check = check_image(Example(0, path, key="x"))
        assert (check.reason in (None, Reason.ANIMATED)) == (not isinstance(loaded, str))
        if check.reason is None:
            assert np.array_equal(loaded, whole)
        seen.add(check.reason)
    assert Reason.ANIMATED in seen or None in seen


def test_damaged_exif_is_no_exif(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)

    def broken(self):
        raise KeyError("what a parser may raise")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    assert np.array_equal(np.array(read_rgb(path)), PIXELS)
    assert check_image(Example(0, path, key="a")).reason is None


def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match=r"a\.jpg is not a regular file"):
        read_rgb(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="the file is empty"):
        read_rgb(tmp_path / "b.jpg")


# --- memory ---------------------------------------------------------------------------------------


def png_of(width, height, rows, color=2):
    """A PNG that states a size and has some of its rows, all black."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    pack, line = zlib.compressobj(9), bytes(1 + width * {0: 1, 2: 3, 6: 4}[color])
    data = b"".join(pack.compress(line) for _ in range(rows)) + pack.flush()
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture
def nothing_decoded(monkeypatch):
    def decode(self):
        raise AssertionError("memory for the pixels was asked for")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)


@pytest.mark.usefixtures("nothing_decoded")
def test_a_large_picture_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(png_of(17_000, 10_000, 10_000))
    said = r"large\.png' is too large: .*17000x10000 .* takes 680 MB .* limit is 400.*MAX_IMAGE_MB"
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(UsageError, match=said):
        read_rgb(path)
    with pytest.warns(Image.DecompressionBombWarning):
        check = check_image(Example(0, path, key="large.png"))
    assert check.reason is Reason.HUGE
    assert "takes 680 MB" in check.detail


@pytest.mark.usefixtures("nothing_decoded")
@pytest.mark.parametrize(("color", "width", "fits"), [(2, 8000, True), (6, 8000, False)])
def test_copies_count(tmp_path, color, width, fits):
    """RGB is decoded as it is, 64 megapixels into 256 MB; RGBA is converted, which takes twice."""
    content = io.BytesIO(png_of(width, 8000, 8000, color))
    if fits:
        assert open_image(content).size == (width, 8000)
    else:
        with pytest.raises(ImageTooLargeError, match=r"mode RGBA\) takes 512 MB"):
            open_image(content)


@pytest.mark.slow
def test_the_limit_can_be_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((1000, 1100, 3), np.uint8)).save(path)
    monkeypatch.setenv(image_files.LIMIT_VARIABLE, "4")
    with pytest.raises(UsageError, match=r"takes 4 MB of memory, and the limit is 4\. Make it"):
        read_rgb(path)
    monkeypatch.setenv(image_files.LIMIT_VARIABLE, "5")
    assert read_rgb(path).size == (1100, 1000)
    monkeypatch.setenv(image_files.LIMIT_VARIABLE, "2000")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: None)
    path.write_bytes(png_of(20_000, 20_000, 20_000))
    with open_image(path) as image:
        assert image.size == (20_000, 20_000)


@pytest.mark.usefixtures("nothing_decoded")
def test_a_file_too_short_for_its_size_is_damaged(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(9000, 9000, 1))
    with pytest.raises(UsageError, match=r"file is truncated: \d+ bytes for 9000x9000 pixels"):
        read_rgb(path)
    assert check_image(Example(0, path, key="a")).reason is Reason.DAMAGED


def test_only_one_place_opens_images():
    """`Image.open` tries every format that Pillow knows."""
    from pathlib import Path

    import bitzoo

    package = Path(bitzoo.__file__).parent
    opening = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if "Image.open(" in line and not line.strip().startswith("'")
    ]
    assert opening == ["models/image_files.py"]
    assert set(FORMATS).isdisjoint({"EPS", "WMF", "IPTC", "ICNS", "ICO", "PSD", "FITS", "HDF5"})


def test_a_file_is_read_as_its_bytes_are(tmp_path):
    """Pillow maps files of uncompressed pixels, and then ignores how many rows a strip has."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.frombytes("CMYK", (30, 40), pixels.tobytes()).save(file, "TIFF")
    content = bytearray(file.getvalue())
    directory = struct.unpack_from("<I", content, 4)[0]
    entries = range(directory + 2, len(content), 12)
    rows_per_strip = next(e for e in entries if struct.unpack_from("<H", content, e)[0] == 278)
    struct.pack_into("<I", content, rows_per_strip + 8, 2)
    path = tmp_path / "rows.tif"
    path.write_bytes(content)
    with Image.open(path) as mapped, open_image(path) as read:
        assert not np.array_equal(np.asarray(mapped), np.asarray(read))
    with open_image(path) as read, open_image(io.BytesIO(content)) as in_memory:
        assert np.array_equal(np.asarray(read), np.asarray(in_memory))
