"""Hostile `.npz` files: every one is refused in one paragraph, at once, and nothing is written.

Each file goes through the command line's own entry point, a few through a real process whose
memory and time are watched. A file that is damaged where it does not matter must convert to the
very same numbers.
"""

import bz2
import contextlib
import errno
import gzip
import io
import os
import pickle
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from safetensors import safe_open
from watched import watch

from bitzoo.cli import main
from bitzoo.converters.convert import convert
from bitzoo.converters.formats import npz
from bitzoo.converters.identify import identify
from bitzoo.converters.open import open_source
from bitzoo.errors import CheckpointError, TensorMismatchError

STEM = "resnet/root_block/standardized_conv2d/kernel"
GAMMA = "resnet/block1/unit01/a/group_norm/gamma"
KERNEL_B = "resnet/block1/unit01/b/standardized_conv2d/kernel"
NORM = "resnet/group_norm/beta"
HEAD = "resnet/head/conv2d/kernel"
BIAS = "resnet/head/conv2d/bias"
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
ARRAYS: dict[str, Any] = make_checkpoint()
for _name, _array in ARRAYS.items():
    if _array.ndim == 4 and _name != KERNEL_B:
        _array[..., 4:] = 0  # is packed and unpacked in no time


# --- making files ---------------------------------------------------------------------------------


def as_npy(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), **options)
    return stream.getvalue()


def npy_with_header(text, data=b"", version=(1, 0), length=None):
    """An .npy whose header says whatever `text` says."""
    header = text.encode("latin1") + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", length or len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + data


def with_shape(shape, data=b"", descr="'<f4'", order="False"):
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    return npy_with_header(header, data)


def write_members(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in members:
            archive.writestr(name, data)
    return path


def members(**replaced):
    """Members of a good checkpoint; keys are the constants above, in small letters."""
    changed = {globals()[key.upper()]: data for key, data in replaced.items()}
    for name, array in ARRAYS.items():
        if changed.get(name, b"") is not None:
            yield f"{name}.npy", changed.get(name) or as_npy(array)


def write_with(path, *extra, method=zipfile.ZIP_STORED, **replaced):
    return write_members(path, [*members(**replaced), *extra], method)


def write_one(path, name, data, method=zipfile.ZIP_STORED):
    """A small file: `data` as one tensor, beside a good one."""
    good = (f"{NORM}.npy", as_npy(ARRAYS[NORM]))
    return write_members(path, [good, (f"{name}.npy", data)], method)


def central_entry(data, name):
    """Position of a name's entry in the zip directory."""
    return data.rindex(name.encode()) - 46


def patch(path, *edits):
    """Overwrite bytes; each edit is a function of the contents that returns (position, bytes)."""
    data = bytearray(path.read_bytes())
    for edit in edits:
        position, new = edit(bytes(data))
        data[position : position + len(new)] = new
    path.write_bytes(data)
    return path


def in_entry(name, offset, form, *values):
    return lambda data: (central_entry(data, name) + offset, struct.pack(form, *values))


def in_end(offset, form, *values):
    return lambda data: (data.rindex(END) + offset, struct.pack(form, *values))


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


# --- watching -------------------------------------------------------------------------------------


def listing(folder):
    return sorted((path.name, path.stat().st_size) for path in folder.rglob("*"))


@pytest.fixture
def command(monkeypatch, capsys):
    """`bitzoo-convert` in this process: arguments -> exit code, stdout, stderr."""
    # which would hear of signals until the process ends
    monkeypatch.setattr(main, "exit_on_signals", lambda: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bitzoo-convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main.convert_main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return call


@pytest.fixture
def refused(tmp_path, command):
    """Assert that a file in `tmp_path` is refused as every bad file should be."""

    def check(path, *said):
        before = listing(tmp_path)
        start = time.monotonic()
        code, out, err = command("--src", path, "--check", "weights")
        assert time.monotonic() - start < 30  # a second or so, but this machine may be busy
        assert listing(tmp_path) == before
        assert (code, out) == (2, "")
        for text in (f"error: {path}: ", *said):
            assert text in err
        assert "\n\n" not in err
        assert "Traceback" not in err
        assert len(err) < 20_000
        assert err.rstrip("\n").replace("\n", "").isprintable()
        return err

    return check


def data_section(path):
    """A safetensors file without its header, which names the source."""
    data = path.read_bytes()
    return data[8 + struct.unpack("<Q", data[:8])[0] :]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The bytes that every readable form of the good checkpoint converts to."""
    folder = tmp_path_factory.mktemp("good")
    output = folder / "good.safetensors"
    convert(write_npz(folder / "good.npz", ARRAYS), output)
    return data_section(output)


# --- what is no checkpoint ------------------------------------------------------------------------

FOREIGN = {
    "empty": (b"", "found an empty file"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "found a web page or XML text"),
    "pickle": (pickle.dumps({"model": [1, 2]}), "a plain Python pickle"),
    "gzip": (gzip.compress(b"BiT" * 100), "expected a tar archive of a module"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(600), "expected a Keras HDF5 file, but it cannot be"),
    "npy": (as_npy(np.zeros(3, "f4")), "found a single NumPy array (.npy)"),
    "bzip2": (bz2.compress(b"BiT" * 100), "found a compressed file"),
    "noise": (random.Random(0).randbytes(5000), "found an unknown format"),
    "two letters": (b"PK", "its directory cannot be read"),
    "local header only": (LOCAL + bytes(5000), "its directory cannot be read"),
    "end record only": (END + bytes(18), "found 0 others (none)"),
    "json": (b'{"a": [{"b": 1}]}', "found JSON text"),
    "json that looks like safetensors": (
        b'{"abcde"{:1}',
        "not a safetensors file, or it is damaged",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind(tmp_path, refused, kind):
    content, said = FOREIGN[kind]
    path = tmp_path / "bit.npz"
    path.write_bytes(content)
    refused(path, said)


def test_no_file_a_folder_and_a_pipe(tmp_path, refused):
    refused(tmp_path / "absent.npz", "expected a checkpoint file, found nothing there")
    (tmp_path / "folder.npz").mkdir()
    refused(tmp_path / "folder.npz", "found a folder there")
    os.mkfifo(tmp_path / "pipe.npz")
    refused(tmp_path / "pipe.npz", "found a special file there")


def test_a_zip_of_something_else(tmp_path, refused):
    path = tmp_path / "letter.npz"
    write_members(path, [("word/document.xml", "<w/>"), ("x.npy", as_npy(np.zeros(2)))])
    refused(path, "expected only arrays (.npy), found a member named 'word/document.xml'")


def test_arrays_of_another_model(tmp_path, refused):
    path = write_npz(tmp_path / "vgg.npz", {f"conv{i}": np.zeros(3, "f4") for i in range(5)})
    said = refused(path, "no tensor has a BiT name", "found 5 others (conv0, conv1, conv2, ...)")
    assert STEM in said


def test_safetensors_under_a_wrong_name_is_read_for_what_it_is(tmp_path, expected):
    source = write_npz(tmp_path / "a.npz", ARRAYS)
    convert(source, tmp_path / "b.npz")
    convert(tmp_path / "b.npz", tmp_path / "c.safetensors")
    assert data_section(tmp_path / "c.safetensors") == expected


# --- code in the file -----------------------------------------------------------------------------


def test_pickled_objects_are_not_unpickled(tmp_path, refused):
    mark = tmp_path / "executed"
    objects = np.array([Payload(mark)], dtype=object)
    evil = write_with(tmp_path / "a.npz", stem=as_npy(objects, allow_pickle=True))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        np.load(evil)[STEM]
    said = refused(evil, f"tensor {STEM!r} holds pickled Python objects, which could run code")
    assert "Do not load this file" in said
    extra = ("notes.npy", as_npy(objects, allow_pickle=True))
    refused(write_with(tmp_path / "b.npz", extra), "tensor 'notes' holds pickled")
    fields = np.array([(1, Payload(mark))], dtype=[("a", "f4"), ("b", object)])
    structured = write_with(tmp_path / "c.npz", stem=as_npy(fields, allow_pickle=True))
    refused(structured, f"tensor {STEM!r} holds pickled")
    (tmp_path / "d.npz").write_bytes(pickle.dumps(Payload(mark)))
    refused(tmp_path / "d.npz", "a pickle that could run code: it asks for io.open")
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {mark}')",
        "{{'descr': open('{mark}', 'w'), 'fortran_order': False, 'shape': (1,)}}",
        "{{'descr': '<f4', 'fortran_order': False, 'shape': (open('{mark}', 'w'),)}}",
        "[x for x in [open('{mark}', 'w')]]",
    ],
)
def test_code_in_a_header_does_not_run(tmp_path, refused, text):
    mark = tmp_path / "executed"
    path = write_one(tmp_path / "a.npz", BIAS, npy_with_header(text.format(mark=mark), bytes(4)))
    refused(path, f"tensor {BIAS!r} has no readable .npy header (malformed header")
    assert not mark.exists()


# --- headers that lie -----------------------------------------------------------------------------

F4 = "'descr': '<f4', 'fortran_order': False"
HEADERS = {
    "nothing": b"",
    "magic only": b"\x93NUMPY",
    "no magic": b"NUMPY" + bytes(200),
    "header of 4 GB": npy_with_header("{}", version=(2, 0), length=0xFFFFFFFF),
    "header of 64 kB": npy_with_header("{}", length=0xFFFF),
    "version 3": npy_with_header(f"{{{F4}, 'shape': (10,)}}", version=(3, 0)),
    "version 9": npy_with_header(f"{{{F4}, 'shape': (10,)}}", version=(9, 9)),
    "dimension of 2**62": with_shape(f"({2**62},)"),
    "product of 2**80": with_shape(f"({2**40}, {2**40})"),
    "product that wraps to 10 items": with_shape(f"({2**61 + 10}, 8)", bytes(40)),
    "number of 4,000 digits": with_shape("(" + "9" * 4000 + ",)"),
    "product of 8,000 digits": with_shape(f"({'9' * 4000}, {'9' * 4000})"),
    "number of 9,000 digits": with_shape("(" + "9" * 9000 + ",)"),
    "negative": with_shape("(-10,)"),
    "two negatives": with_shape("(-5, -2)", bytes(40)),
    "rank 2,000": with_shape("(" + "1," * 2000 + ")", bytes(4)),
    "float size": with_shape("(10.0,)", bytes(40)),
    "text size": with_shape("('10',)", bytes(40)),
    "shape is a number": with_shape("10", bytes(40)),
    "shape is a list": with_shape("[10]", bytes(40)),
    "shape is None": with_shape("None"),
    "order is a number": with_shape("(10,)", bytes(40), order="1"),
    "unclosed": npy_with_header(f"{{{F4}, 'shape': (10,"),
    "unclosed text": npy_with_header("{'descr': '<f4"),
    "unclosed long text": npy_with_header("{'descr': '''<f4"),
    "nested deeply": npy_with_header("(" * 4900 + ")" * 4900),
    "signs": npy_with_header("-" * 9000 + "1"),
    "sums": npy_with_header("+".join("1" * 4900)),
    "indented": npy_with_header("  \n\t{ 1\n  2}"),
    "null byte": npy_with_header("{\0}"),
    "not a dict": npy_with_header("[1, 2]"),
    "missing key": npy_with_header(f"{{{F4}}}"),
    "extra key": npy_with_header(f"{{{F4}, 'shape': (10,), 'x': 1}}", bytes(40)),
    "unhashable key": npy_with_header("{[]: 1}"),
    "strange escape": npy_with_header(r"{'descr': '\d', 'fortran_order': False, 'shape': (10,)}"),
    "dtype of nonsense": with_shape("(10,)", bytes(40), descr="'nonsense'"),
    "dtype of a number": with_shape("(10,)", bytes(40), descr="5"),
    "dtype of None": with_shape("(10,)", bytes(40), descr="None"),
    "dtype of huge text": with_shape("(10,)", bytes(40), descr="'<U99999999999'"),
    "dtype of huge subarray": with_shape("(10,)", bytes(40), descr=f"('<f4', ({2**31}, {2**31}))"),
    "dtype of a deprecated letter": with_shape("(10,)", bytes(40), descr="'a4'"),
    "too short": with_shape("(10,)", bytes(39)),
    "too long": with_shape("(10,)", bytes(41)),
    "bigger than the file": with_shape("(1000000000,)", bytes(40)),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_lies(tmp_path, refused, kind):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = write_one(tmp_path / f"{method}.npz", BIAS, HEADERS[kind], method)
        refused(path, f"tensor {BIAS!r} ")


DTYPES = ["i1", "u1", "?", "i4", "i8", "c8", "c16", "g", "S4", "U4", "M8[s]", "V4", "f4,f4"]


@pytest.mark.parametrize("code", DTYPES)
def test_numbers_of_another_kind(tmp_path, refused, code):
    array = np.zeros(10, code)
    path = write_one(tmp_path / "a.npz", BIAS, as_npy(array))
    refused(path, f"tensor {BIAS!r} has dtype {array.dtype}, expected float32 (float16 and")


def test_a_header_of_python_2_is_legal(tmp_path, expected):
    raw = np.ascontiguousarray(ARRAYS[BIAS]).tobytes()
    path = write_with(tmp_path / "a.npz", bias=with_shape("(10L,)", raw))
    convert(path, tmp_path / "a.safetensors")  # and warns of nothing
    assert data_section(tmp_path / "a.safetensors") == expected


# --- names ----------------------------------------------------------------------------------------


def test_a_name_twice(tmp_path, refused):
    path = write_with(tmp_path / "a.npz", (f"{BIAS}.npy", as_npy(ARRAYS[BIAS])))
    refused(path, f"expected each name once, found two tensors named {BIAS!r}")
    numbered = STEM.replace("conv2d", "conv2d_7") + ".npy"
    path = write_with(tmp_path / "b.npz", (numbered, as_npy(ARRAYS[STEM])))
    refused(path, f"found two tensors named {STEM!r}")


ODD_NAMES = {
    "escape codes": ("\x1b[31mred.npy", r"'\x1b[31mred.npy'"),
    "line break": ("a\nb.npy", r"'a\nb.npy'"),
    "unicode": ("größe.npy", "'größe.npy'"),
    "right to left": ("\u202egpj.npy", r"'\u202egpj.npy'"),
    "no suffix": ("readme", "'readme'"),
    "folder": ("resnet/", "'resnet/'"),
    "60 kB": ("x" * 60_000 + ".npy", "a tensor's name has 60,004 characters"),
}


@pytest.mark.parametrize("kind", ODD_NAMES)
def test_odd_names_are_refused_and_shown_escaped(tmp_path, refused, kind):
    name, said = ODD_NAMES[kind]
    array = as_npy(np.zeros(2, "f4"))
    refused(write_members(tmp_path / "a.npz", [(name, array), (f"{BIAS}.npy", array)]), said)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "C:\\x", "..\\x", "a//b", ".", "resnet/../x", "%s%n", "{0}", "[red]"]
)
def test_a_name_that_is_a_path_is_only_a_name(tmp_path, refused, name):
    path = write_with(tmp_path / "in.npz", (f"{name}.npy", as_npy(np.zeros(2, "f4"))))
    refused(path, f"\n  + {name} (2,)\n")
    assert not (tmp_path.parent / "x.npy").exists()


UNITS = ["unit999", "unit99999999", "unit00", "unit1", "unit001", "unit01 ", "unit\u0660\u0662"]


@pytest.mark.parametrize("unit", UNITS)
def test_absurd_unit_numbers(tmp_path, refused, unit):
    name = f"resnet/block1/{unit}/a/group_norm/gamma"
    path = write_with(tmp_path / "a.npz", (f"{name}.npy", as_npy(np.zeros(32, "f4"))))
    if not name.isascii():
        refused(path, "found a member named")
        return
    said = refused(path, "closest to R(1,1,1,1)x0.5 with 10 classes")
    assert said.splitlines()[1:-1] == [f"  + {name} (32,)"]


# --- tensors that do not fit ----------------------------------------------------------------------


def diff_of(error):
    return [line.strip() for line in error.splitlines() if line.startswith("  ")]


def test_the_diff_names_each_tensor_once_and_in_order(tmp_path, refused):
    changed = dict(ARRAYS)
    del changed[GAMMA], changed["resnet/block4/unit01/c/standardized_conv2d/kernel"]
    changed[KERNEL_B] = np.zeros((3, 3, 32, 31), "f4")
    changed[NORM] = np.zeros((1, 1024), "f4")
    changed["global_step"] = np.zeros((), "f4")
    changed["empty"] = np.zeros((3, 0), "f4")
    said = refused(write_npz(tmp_path / "a.npz", changed), "Expected (-) and found (+):")
    assert diff_of(said) == [
        "+ empty (3, 0)",
        "+ global_step ()",
        f"- {GAMMA} (32,)",
        f"- {KERNEL_B} (3, 3, 32, 32)",
        f"+ {KERNEL_B} (3, 3, 32, 31)",
        "- resnet/block4/unit01/c/standardized_conv2d/kernel (1, 1, 256, 1024)",
        f"- {NORM} (1024,)",
        f"+ {NORM} (1, 1024)",
    ]


@pytest.mark.parametrize("name", list(ARRAYS))
def test_any_one_tensor_may_be_missing(tmp_path, refused, name):
    path = write_npz(tmp_path / "a.npz", {k: v for k, v in ARRAYS.items() if k != name})
    assert diff_of(refused(path)) == [f"- {name} {ARRAYS[name].shape}"]


@pytest.mark.parametrize("name", [STEM, GAMMA, KERNEL_B, NORM, HEAD])
def test_any_tensor_may_be_misshapen(tmp_path, refused, name):
    right = ARRAYS[name].shape
    for wrong in [(), (0,), (*right, 1), right[:-1], (*right[:-1], right[-1] + 1), (0, *right[1:])]:
        path = write_npz(tmp_path / "a.npz", ARRAYS | {name: np.zeros(wrong, "f4")})
        if wrong != right:
            assert diff_of(refused(path)) == [f"- {name} {right}", f"+ {name} {wrong}"]


def test_a_head_without_outputs(tmp_path, refused):
    changed = {HEAD: np.zeros((1, 1, 1024, 0), "f4"), BIAS: np.zeros(0, "f4")}
    said = refused(write_npz(tmp_path / "a.npz", ARRAYS | changed))
    assert diff_of(said) == [f"+ {BIAS} (0,)", f"+ {HEAD} (1, 1, 1024, 0)"]


def test_a_stem_for_absurdly_many_channels(tmp_path, refused):
    """Read in slabs it would take a system call for each position and channel: minutes."""
    path = write_npz(tmp_path / "a.npz", ARRAYS | {STEM: np.zeros((7, 7, 5000, 32), "f4")})
    assert diff_of(refused(path)) == [f"- {STEM} (7, 7, 3, 32)", f"+ {STEM} (7, 7, 5000, 32)"]


def test_a_gap_in_the_units_is_shown_as_missing_tensors(tmp_path, refused):
    arrays = make_checkpoint(depths=(3, 1, 1, 1))
    gone = {name: array for name, array in arrays.items() if "block1/unit02" in name}
    path = write_npz(tmp_path / "a.npz", {k: v for k, v in arrays.items() if k not in gone})
    said = refused(path, "closest to R(3,1,1,1)x0.5")
    assert diff_of(said) == [f"- {name} {gone[name].shape}" for name in sorted(gone)]


def test_a_long_diff_is_cut(tmp_path, refused):
    extra = {f"optimizer/{i:04d}": np.zeros(1, "f4") for i in range(500)}
    said = refused(write_npz(tmp_path / "a.npz", ARRAYS | extra), "... and 460 more")
    assert len(diff_of(said)) == 41


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [STEM, GAMMA, KERNEL_B, NORM, HEAD, BIAS])
def test_a_number_that_is_none(tmp_path, refused, name, value):
    array = ARRAYS[name].copy()
    array.flat[-1] = value
    path = write_npz(tmp_path / "a.npz", ARRAYS | {name: array})
    refused(path, f"tensor {name!r} holds NaN or infinite numbers")


def test_infinities_that_add_up_to_none(tmp_path, refused):
    array = ARRAYS[KERNEL_B].copy()
    array.flat[0], array.flat[-1] = np.inf, -np.inf
    path = write_npz(tmp_path / "a.npz", ARRAYS | {KERNEL_B: array})
    refused(path, f"tensor {KERNEL_B!r} holds NaN or infinite numbers")


def test_large_numbers_are_numbers(tmp_path):
    array = ARRAYS[BIAS].copy()
    array[:] = np.finfo(np.float32).max  # their sum is infinite
    path = write_npz(tmp_path / "a.npz", ARRAYS | {BIAS: array})
    output = convert(path, compare=True).output
    with safe_open(output, "np") as file:
        assert file.get_tensor("head.fc.bias").tobytes() == array.tobytes()


def test_numbers_that_float32_cannot_hold(tmp_path, refused):
    large = ARRAYS[BIAS].astype(np.float64)
    large[3] = 1e39
    path = write_npz(tmp_path / "a.npz", ARRAYS | {BIAS: large})
    refused(path, f"tensor {BIAS!r} holds NaN or infinite numbers (or numbers too large")
    signalling = ARRAYS[BIAS].astype(np.float64)
    signalling.view(np.uint64)[3] = 0x7FF0_0000_0000_0001
    path = write_npz(tmp_path / "b.npz", ARRAYS | {BIAS: signalling})
    refused(path, f"tensor {BIAS!r} holds NaN")


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["stored", "packed"])
def good_file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "a.npz"
    (np.savez if request.param == "stored" else np.savez_compressed)(path, **ARRAYS)
    return path


def sections(path):
    """Where the parts of a zip file lie: (start, stop) by name."""
    with zipfile.ZipFile(path) as archive:
        infos, directory = archive.infolist(), archive.start_dir
    data = path.read_bytes()
    first = infos[0]
    names = struct.unpack_from("<HH", data, first.header_offset + 26)
    header = first.header_offset + 30 + sum(names)
    big = next(info for info in infos if KERNEL_B in info.filename).header_offset
    return {
        "local header": (first.header_offset, header),
        "npy header": (header, header + 128),
        "data": (header + 128, header + first.compress_size),
        "a kernel": (big + 400, big + 30_000),
        "directory": (directory, data.rindex(END)),
        "end record": (data.rindex(END), len(data)),
    }


FLIPS = {
    "local header": 30,
    "npy header": 40,
    "data": 12,
    "a kernel": 8,
    "directory": 80,
    "end record": 30,
}


@pytest.mark.parametrize("section", FLIPS)
def test_one_flipped_bit_is_refused_or_does_not_matter(good_file, expected, section):
    path, (start, stop) = good_file, sections(good_file)[section]
    data, before = path.read_bytes(), listing(path.parent)
    chance = random.Random(section)
    messages = []
    for _ in range(FLIPS[section]):
        position, bit = chance.randrange(start, stop), chance.randrange(8)
        overwrite(path, position, bytes([data[position] ^ 1 << bit]))
        message, found = convert_or_say(path)
        if message is None:
            assert found == expected, f"bit {bit} of byte {position} went unseen"
        else:
            messages.append(message)
        assert listing(path.parent) == before
        overwrite(path, position, data[position : position + 1])
    assert all(message.startswith(f"{path}: ") for message in messages)
    assert max(map(len, messages)) < 20_000
    if section in ("data", "a kernel"):
        assert len(messages) == FLIPS[section]


def overwrite(path, position, data):
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


def convert_or_say(path):
    """Convert; return the message of a refusal and None, or None and the data, which is deleted."""
    output = path.with_suffix(".safetensors")
    try:
        convert(path, output)
    except CheckpointError as error:
        return str(error), None
    found = data_section(output)
    output.unlink()
    return None, found


def test_a_file_cut_short_anywhere(good_file, tmp_path):
    data, places = good_file.read_bytes(), sections(good_file)
    cuts = set(range(0, len(data), len(data) // 40))
    for start, stop in places.values():
        cuts |= {start, start + 1, (start + stop) // 2, stop - 1}
    cuts |= set(range(len(data) - 22, len(data)))
    path = tmp_path / "cut.npz"
    path.write_bytes(data)
    for cut in sorted(cuts, reverse=True):
        os.truncate(path, cut)
        with pytest.raises(CheckpointError, match=r"cut\.npz: .*(cannot be read|found|expected)"):
            convert(path)
        assert listing(tmp_path) == [("cut.npz", cut)]


def test_a_file_cut_while_it_is_read(tmp_path):
    path = write_npz(tmp_path / "a.npz", ARRAYS)
    with open_source(path) as source:
        os.truncate(path, 5_000_000)
        with pytest.raises(CheckpointError, match=r"ends at byte 5,000,000, .* It is truncated"):
            source.sha256()
        tensor = source.tensors[BIAS]
        with pytest.raises(CheckpointError, match="It is truncated; fetch it again"):
            tensor.read()


def test_bytes_before_and_after_the_zip(tmp_path, refused, expected):
    good = write_npz(tmp_path / "good.npz", ARRAYS).read_bytes()
    (tmp_path / "before.npz").write_bytes(b"#!/bin/sh\n" + good)
    refused(tmp_path / "before.npz", "found an unknown format")
    for name, data in {"comment": b"", "after": good + bytes(1000)}.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(data or good[:-2] + struct.pack("<H", 5000) + b"c" * 5000)
        convert(path, path.with_suffix(".safetensors"))
        assert data_section(path.with_suffix(".safetensors")) == expected


def test_loading_checks_the_checksums_too(tmp_path):
    from bitzoo.converters.state_dict import read_arrays

    path = write_npz(tmp_path / "a.npz", ARRAYS)
    with open_source(path) as source:
        position = source.tensors[BIAS].offset  # type: ignore[attr-defined]
        good = read_arrays(source, identify(source))
    assert good["head.fc.bias"].tobytes() == ARRAYS[BIAS].tobytes()
    patch(path, lambda data: (position, bytes([data[position] ^ 1])))
    with open_source(path) as source, pytest.raises(CheckpointError, match=r"bias.* is damaged"):
        read_arrays(source, identify(source))


# --- the zip directory ----------------------------------------------------------------------------


def test_a_directory_that_claims_gigabytes(tmp_path, refused):
    for size in (0xFFFF_FFF0, 3_000_000, struct.unpack("<L", END)[0]):
        path = tmp_path / f"{size}.npz"
        end = struct.pack("<4sHHHHLLH", END, 0, 0, 9, 9, size, 0, 0)
        path.write_bytes(LOCAL)
        with path.open("r+b") as file:  # a file with a hole, which is as large as it claims
            file.seek(size)
            file.write(end)
        refused(path, f"its zip directory claims {size:,} bytes, expected at most 1,048,576")
        small = write_one(tmp_path / "small.npz", BIAS, as_npy(ARRAYS[BIAS]))
        refused(patch(small, in_end(12, "<L", size)), "its directory cannot be read")


def test_a_zip64_directory_that_claims_exabytes(tmp_path, refused):
    path = write_with(tmp_path / "a.npz")
    data = path.read_bytes()
    end = data.rindex(END)
    record = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 45, 45, 1 << 60, 9)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    last = struct.pack("<4sHHHHLLH", END, 0, 0, 0xFFFF, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF, 0)
    path.write_bytes(data[:end] + record + locator + last)
    refused(path, "its directory cannot be read")


@pytest.mark.parametrize("offset", [1, 1000, 0x7FFF_FFFF, 0xFFFF_FFF0])
def test_a_directory_that_is_elsewhere(tmp_path, refused, offset):
    path = write_with(tmp_path / "a.npz")
    refused(patch(path, in_end(16, "<L", offset)), "damaged; fetch it again")


@pytest.mark.parametrize("where", [1, 8_000_000, 0xFFFF_FF00])
def test_a_member_that_is_elsewhere(tmp_path, refused, where):
    path = patch(write_with(tmp_path / "a.npz"), in_entry(HEAD, 42, "<L", where))
    refused(path, f"tensor '{HEAD}.npy' is not at the position in the zip directory")


@pytest.mark.parametrize("size", [0, 8, 1_000, 0xFFFF_FFF0])
def test_a_member_of_another_size(tmp_path, refused, size):
    path = patch(write_with(tmp_path / "a.npz"), in_entry(HEAD, 20, "<LL", size, size))
    assert HEAD in refused(path)
    path = patch(write_with(tmp_path / "b.npz"), in_entry(HEAD, 24, "<L", size))
    refused(path, f"tensor '{HEAD}.npy' claims {size:,} bytes")


def test_members_that_share_bytes(tmp_path, refused):
    path = write_with(tmp_path / "a.npz")
    first = path.read_bytes().index(LOCAL)
    patch(path, in_entry(BIAS, 42, "<L", first))
    refused(
        path, "bias.npy' has another name at its position in the file than in the zip directory"
    )
    twins = [("a/gamma.npy", as_npy(ARRAYS[BIAS])), ("b/gamma.npy", as_npy(ARRAYS[BIAS]))]
    path = write_with(tmp_path / "b.npz", *twins)
    start = path.read_bytes().index(b"a/gamma.npy") - 30
    patch(path, in_entry("b/gamma", 42, "<L", start))
    refused(path, "'b/gamma.npy' has another name at its position in the file")


def test_a_member_inside_another(tmp_path, refused):
    """The numbers of one contain the other, header and all."""
    alone = write_with(tmp_path / "alone.npz", ("b/gamma.npy", as_npy(ARRAYS[BIAS]))).read_bytes()
    start = alone.index(b"b/gamma.npy") - 30
    record = alone[start : alone.index(b"PK\x01\x02")]
    outer = np.frombuffer(record + bytes(-len(record) % 4), "<f4")
    path = write_with(
        tmp_path / "a.npz", ("a/gamma.npy", as_npy(outer)), ("b/gamma.npy", as_npy(ARRAYS[BIAS]))
    )
    patch(path, in_entry("b/gamma", 42, "<L", path.read_bytes().index(record)))
    refused(path, "found 'a/gamma.npy' and 'b/gamma.npy' overlapping")


def test_a_hundred_thousand_members(tmp_path, refused):
    entry = struct.pack("<4sHHHHHHLLLHHHHHLL", CENTRAL, 20, 20, *[0] * 7, 9, *[0] * 6)
    directory = b"".join(entry + b"%05d.npy" % i for i in range(100_000))
    end = struct.pack("<4sHHHHLLH", END, 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)
    path = tmp_path / "a.npz"
    path.write_bytes(directory + end)
    refused(path, f"its zip directory claims {len(directory):,} bytes")


def test_five_thousand_members(tmp_path, refused):
    array = as_npy(np.zeros(1, "f4"))
    path = write_with(tmp_path / "a.npz", *[(f"{i:05d}.npy", array) for i in range(5_000)])
    assert len(diff_of(refused(path, "... and 4960 more"))) == 41


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_numpy_never_writes(tmp_path, refused, method):
    path = write_one(tmp_path / "a.npz", BIAS, as_npy(ARRAYS[BIAS]), method)
    assert np.load(path)[BIAS].tolist() == ARRAYS[BIAS].tolist()
    refused(path, f"is compressed by method {method}, expected stored or deflated data")


@pytest.mark.parametrize(
    ("field", "form", "value", "said"),
    [
        (8, "<H", 1, "is encrypted or a patch, expected plain data"),
        (10, "<H", 99, "is compressed by method 99"),
        (6, "<H", 0xFF, "its directory cannot be read"),
    ],
)
def test_what_numpy_never_writes(tmp_path, refused, field, form, value, said):
    refused(patch(write_with(tmp_path / "a.npz"), in_entry(HEAD, field, form, value)), said)


# --- compressed members ---------------------------------------------------------------------------


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder of temporary files, which must be empty in the end."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def test_compressed_members_convert_exactly(tmp_path, scratch, expected):
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)
    convert(tmp_path / "a.npz", compare=True)
    assert data_section(tmp_path / "a.safetensors") == expected


def test_compressed_and_stored_members_mix(tmp_path, scratch, expected):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, array) in enumerate(reversed(ARRAYS.items())):
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            array = np.asfortranarray(array) if number % 3 else array
            archive.writestr(f"{name}.npy", as_npy(array), method)
    convert(path)
    assert data_section(path.with_suffix(".safetensors")) == expected


def test_compressed_members_need_no_descriptor_each(tmp_path, scratch, expected):
    """R152 has 459 tensors, macOS gives a process 256 descriptors."""
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(name) for name in os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 16, hard))
    try:
        convert(tmp_path / "a.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert data_section(tmp_path / "a.safetensors") == expected


def test_the_bound_on_unpacked_bytes(tmp_path, scratch, refused, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)
    total = sum(array.nbytes for array in ARRAYS.values())
    monkeypatch.setattr(npz, "MAX_UNPACKED_BYTES", total - 1)
    refused(
        tmp_path / "a.npz",
        f"its compressed tensors have {total:,} bytes uncompressed, expected at most {total - 1:,}",
        "Save it again with numpy.savez",
    )


def lying_member(path, real, claimed):
    """Compress `real` elements of the head's bias under a header that claims other numbers."""
    data = np.resize(np.arange(100, dtype="f4"), real).tobytes()
    member = with_shape(f"({claimed},)", data)
    write_with(path, (f"{BIAS}.npy", member), bias=None, method=zipfile.ZIP_DEFLATED)
    size = len(with_shape(f"({claimed},)")) + 4 * claimed
    crc = zlib.crc32(member[:size])  # what a reader that stops there computes
    return patch(path, in_entry(BIAS, 24, "<L", size), in_entry(BIAS, 16, "<L", crc))


def test_a_member_that_unpacks_to_less_than_it_claims(tmp_path, scratch, refused):
    path = lying_member(tmp_path / "a.npz", real=4, claimed=10)
    refused(path, f"tensor '{BIAS}.npy' cannot be unpacked", " bytes, found ")


def test_a_member_that_unpacks_to_more_than_it_claims(tmp_path, scratch, expected):
    """Like every zip reader, this one stops at the claimed size; the checksum is of that much."""
    path = lying_member(tmp_path / "a.npz", real=1_000_000, claimed=10)
    convert(path)
    bias = np.frombuffer(data_section(path.with_suffix(".safetensors"))[:40], "<f4")
    assert bias.tolist() == list(range(10))
    assert np.load(path)[BIAS].tolist() == list(range(10))


def test_a_broken_stream_in_the_middle(tmp_path, scratch, refused):
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        info = max(archive.infolist(), key=lambda info: info.compress_size)
    patch(tmp_path / "a.npz", lambda data: (info.header_offset + 1_000, b"\xff" * 64))
    refused(tmp_path / "a.npz", f"tensor '{info.filename}' cannot be unpacked", "is damaged")


def test_no_room_to_unpack(tmp_path, scratch, refused, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    refused(
        tmp_path / "a.npz",
        f"its compressed tensors cannot be unpacked to {scratch} (No space left on device)",
        "Set TMPDIR to a folder with enough space",
    )


# --- a real process -------------------------------------------------------------------------------

MEMORY = 200 << 20
"""Peak resident memory of a refusal; Python with NumPy and the command line takes about 70 MB."""


def zeros_member(archive, name, shape, unpacked):
    """A member of zeros that claims `shape`; `unpacked` bytes of it are really there."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        member.write(with_shape(shape))
        piece = bytes(1 << 20)
        for _ in range(unpacked >> 20):
            member.write(piece)


def bomb(path):
    """400 MB of zeros in a tensor that no BiT network has."""
    write_with(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        zeros_member(archive, "bomb", f"({100 << 20},)", 400 << 20)
    return path


def lying_bomb(path):
    """20 GB by its word, of which 1 MB is there."""
    write_with(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        zeros_member(archive, "bomb", f"({5 << 30},)", 1 << 20)
        info = archive.getinfo("bomb.npy")
        info.file_size = len(with_shape(f"({5 << 30},)")) + (20 << 30)
    return path


def pickle_bomb(path):
    return write_with(path, stem=as_npy(np.array([Payload("x")], object), allow_pickle=True))


def truncated(path):
    os.truncate(write_npz(path, ARRAYS), 5_000_000)
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (bomb, "its contents claim "),
        (lying_bomb, "tensors have 21,474,836,480 bytes uncompressed, expected at most"),
        (pickle_bomb, "holds pickled Python objects"),
        (truncated, "its directory cannot be read"),
    ],
)
def test_in_a_process_of_its_own(tmp_path, make, said):
    path = make(tmp_path / "bit.npz")
    before = listing(tmp_path)
    code, out, err, memory, seconds = watch("convert", "--src", path)
    assert (code, out) == (2, ""), err
    assert err.startswith(f"error: {path}: ")
    assert said in err
    assert "Traceback" not in err
    assert "\n\n" not in err
    assert listing(tmp_path) == before
    assert 20 << 20 < memory < MEMORY
    assert seconds < 30


def test_debug_shows_the_traceback(tmp_path):
    code, _, err, _, _ = watch("convert", "--src", truncated(tmp_path / "a.npz"), "--debug")
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert "its directory cannot be read" in err.splitlines()[-1]


def test_mismatch_is_a_checkpoint_error():
    """So that one `except` catches every bad file."""
    assert issubclass(TensorMismatchError, CheckpointError)
    assert issubclass(CheckpointError, ValueError)
    with contextlib.suppress(CheckpointError):
        raise TensorMismatchError("suppressed")
