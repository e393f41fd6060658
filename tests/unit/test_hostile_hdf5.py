"""Damaged and hostile HDF5 files: bounded, and read as h5py reads them or not at all."""

import os
import random
import subprocess
import sys
import time

import bounded_calls
import h5py
import numpy as np
import pytest
from checkpoints import make_checkpoint
from formats import write_keras

from bitzoo.converters.formats import keras
from bitzoo.converters.identify import identify
from bitzoo.converters.open import open_source
from bitzoo.errors import BitzooError, CheckpointError
from bitzoo.limited_process import LimitedProcessError, run_limited

ARRAYS = make_checkpoint(num_classes=2)
STEM = "root_block/root_block/standardized_conv2d/kernel:0"
NAME = "resnet/root_block/standardized_conv2d/kernel"


@pytest.fixture
def keras_file(tmp_path):
    return write_keras(tmp_path / "a.h5", ARRAYS)


def replace_stem(path, make):
    """Put another object where the stem's kernel is."""
    with h5py.File(path, "r+") as file:
        del file[STEM]
        make(file)


def refusal(path):
    with pytest.raises(CheckpointError) as caught, open_source(path) as source:
        identify(source)
    return str(caught.value)


# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
def test_ieee_floats_are_read_as_h5py_reads_them(keras_file, code):
    values = ARRAYS[NAME].astype(code)
    replace_stem(keras_file, lambda file: file.create_dataset(STEM, data=values))
    with open_source(keras_file) as source:
        found = source.tensors[NAME].read()
    with h5py.File(keras_file) as file:
        np.testing.assert_array_equal(found, file[STEM][()])
    assert found.dtype.itemsize == values.dtype.itemsize


def brain_float():
    kind = h5py.h5t.IEEE_F16LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_ebias(127)
    return kind


def write_typed(path, kind, chunks=None):
    """Write the stem's kernel with a type of HDF5; the library converts the numbers."""

    def make(file):
        space = h5py.h5s.create_simple(ARRAYS[NAME].shape)
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if chunks:
            created.set_chunk(chunks)
        group, name = STEM.rsplit("/", 1)
        dataset = h5py.h5d.create(file[group].id, name.encode(), kind, space, created)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(ARRAYS[NAME]))

    replace_stem(path, make)


@pytest.mark.parametrize("chunks", [None, (7, 7, 3, 8)])
def test_bfloat16_is_read_as_the_library_converts_it(keras_file, chunks):
    write_typed(keras_file, brain_float(), chunks)
    with open_source(keras_file) as source:
        tensor = source.tensors[NAME]
        assert tensor.stored_dtype == "bfloat16"
        found = tensor.read()
    with h5py.File(keras_file) as file:
        expected = file[STEM].astype("<f4")[()]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, ARRAYS[NAME], rtol=2**-7)


def test_a_float_with_other_fields_is_not_read_as_raw_bytes(keras_file):
    """24 of 32 bits: h5py converts it, and its raw bytes are other numbers."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(31, 24, 7, 1, 23)
    kind.set_ebias(63)
    write_typed(keras_file, kind)
    with h5py.File(keras_file) as file:
        np.testing.assert_allclose(file[STEM].astype("<f4")[()], ARRAYS[NAME], rtol=1e-5)
    assert (
        "is stored as floats of 32 bits with 7 for the exponent and 23 for the mantissa, which is "
        "not an IEEE type"
    ) in refusal(keras_file)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: f.create_dataset(STEM, data=np.zeros((7, 7, 3, 32), "<i4")), "stored as int32"),
        (lambda f: f.create_dataset(STEM, data=np.zeros(3, "V8")), "is stored as |V8"),
        (lambda f: f.create_dataset(STEM, (3,), h5py.ref_dtype), "is stored as object"),
        (lambda f: f.create_dataset(STEM, (3,), h5py.regionref_dtype), "is stored as object"),
        (lambda f: f.create_dataset(STEM, data=h5py.Empty("<f4")), "a null data space"),
        (lambda f: f.create_group(STEM), "is stored as Group"),
    ],
    ids=["integers", "opaque", "references", "region references", "nothing", "group"],
)
def test_what_is_no_number(keras_file, make, said):
    replace_stem(keras_file, make)
    assert said in refusal(keras_file)


# --- numbers that are not there -------------------------------------------------------------------


def test_chunks_that_were_never_written(keras_file):
    """A gigabyte promised by some kilobytes; then a tensor that is only half there."""

    def promise(file):
        file.create_dataset(STEM, (1 << 14, 1 << 14), "<f4", chunks=(1 << 10, 1 << 10))

    replace_stem(keras_file, promise)
    message = refusal(keras_file)
    assert "are not all there" in message
    assert "needs 1,073,741,824 bytes, found 0, some of them never written" in message

    def half(file):
        dataset = file.create_dataset(STEM, (7, 7, 3, 32), "<f4", chunks=(7, 7, 3, 16))
        dataset[..., :16] = ARRAYS[NAME][..., :16]

    replace_stem(keras_file, half)
    assert "needs 18,816 bytes, found 9,408, some of them never written" in refusal(keras_file)


def test_contiguous_numbers_that_were_never_written(keras_file):
    replace_stem(keras_file, lambda file: file.create_dataset(STEM, (1 << 20, 1 << 10), "<f4"))
    assert "some of them never written" in refusal(keras_file)


def test_a_compressed_run_of_zeros_is_not_believed(tmp_path):
    arrays = make_checkpoint(num_classes=2)
    path = write_keras(tmp_path / "a.h5", arrays, compression="gzip", chunks=True)
    with h5py.File(path, "r+") as file:
        head = file["head/dense/head/dense"]
        for name, shape in (("kernel:0", (1, 1, 1024, 60_000)), ("bias:0", (60_000,))):
            if name in head:
                del head[name]
                data = np.zeros(shape, "<f4")
                head.create_dataset(name, data=data, compression="gzip", chunks=True)
    message = refusal(path)
    assert "its contents claim 2" in message
    assert "expected at most 16 times as many, because weights hardly compress" in message


@pytest.mark.parametrize("storage", [{"chunks": True}, {"chunks": True, "compression": "gzip"}])
def test_chunked_files_are_read_as_h5py_reads_them(tmp_path, storage):
    path = write_keras(tmp_path / "a.h5", ARRAYS, shuffle=True, **storage)
    before = set(os.listdir(tmp_path))
    with open_source(path) as source:
        for name, tensor in source.tensors.items():
            np.testing.assert_array_equal(
                tensor.read(),
                ARRAYS[name.replace("head/dense", "head/conv2d")].reshape(tensor.shape),
            )
            axis = len(tensor.shape) - 1
            np.testing.assert_array_equal(tensor.read_slab(axis, 1, 3), tensor.read()[..., 1:3])
    assert set(os.listdir(tmp_path)) == before


def test_a_small_tensor_in_the_header_is_read(keras_file):
    at = "group_norm/group_norm/gamma:0"
    values = ARRAYS["resnet/group_norm/gamma"]

    def make(file):
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_layout(h5py.h5d.COMPACT)
        group, name = at.rsplit("/", 1)
        space = h5py.h5s.create_simple(values.shape)
        kind = h5py.h5t.IEEE_F32LE
        dataset = h5py.h5d.create(file[group].id, name.encode(), kind, space, created)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values)

    with h5py.File(keras_file, "r+") as file:
        del file[at]
        make(file)
    with open_source(keras_file) as source:
        np.testing.assert_array_equal(source.tensors["resnet/group_norm/gamma"].read(), values)


# --- numbers elsewhere ----------------------------------------------------------------------------


def timed_refusal(path, seconds=20):
    start = time.monotonic()
    message = refusal(path)
    assert time.monotonic() - start < seconds
    return message


def test_links_are_not_followed_not_even_to_a_pipe(keras_file, tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    at = {
        "external": h5py.ExternalLink("pipe.h5", STEM),
        "soft": h5py.SoftLink("/block1"),
    }
    for kind, link in at.items():

        def make(file, link=link):
            file[STEM] = link

        replace_stem(keras_file, make)
        message = timed_refusal(keras_file)
        assert f"a {kind.title()}Link, are in other files, expected them in this one" in message


def test_a_layer_that_is_a_link(keras_file, tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    with h5py.File(keras_file, "r+") as file:
        del file["block2"]
        file["block2"] = h5py.ExternalLink("pipe.h5", "/")
    assert "the numbers of 'block2', a ExternalLink, are in other files" in timed_refusal(
        keras_file
    )


def test_numbers_in_external_files_and_virtual_data_sets(keras_file, tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    os.mkfifo(tmp_path / "pipe.raw")

    def external(file):
        file.create_dataset(STEM, (7, 7, 3, 32), "<f4", external=[("pipe.raw", 0, 18_816)])

    replace_stem(keras_file, external)
    assert "are in other files, expected them in this one" in timed_refusal(keras_file)

    def virtual(file):
        layout = h5py.VirtualLayout((7, 7, 3, 32), "<f4")
        layout[...] = h5py.VirtualSource(str(tmp_path / "pipe.h5"), "x", (7, 7, 3, 32))
        file.create_virtual_dataset(STEM, layout)

    replace_stem(keras_file, virtual)
    assert "are in other files, expected them in this one" in timed_refusal(keras_file)


# --- the process with bounds ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "seconds", "said"),
    [
        (bounded_calls.loop, 0.5, "its structure is not read within 0.5 seconds of computing"),
        (bounded_calls.fill, 5, "it takes more than 64 MiB of memory"),
        (bounded_calls.crash, 5, "the process that reads it ended with status -11"),
    ],
)
def test_bounds_hold_and_are_said(function, seconds, said):
    with pytest.raises(LimitedProcessError) as caught:
        run_limited(function, cpu_seconds=seconds, memory=64 << 20)
    assert str(caught.value) == said


def test_no_process_outlives_its_parent(tmp_path):
    """Killed in the middle of a call, the parent leaves nothing that runs."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from bitzoo.limited_process import run_limited\n"
        "from bounded_calls import wait\n"
        f"run_limited(wait, {str(tmp_path / 'pid')!r}, cpu_seconds=60, memory=1 << 28)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid):
    """Whether a process runs; one that ended and that nobody has asked about does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_attribute_that_never_ends_is_given_up(keras_file, monkeypatch):
    """As the library does for some damaged files: SIGTERM cannot stop it, the bound can."""
    monkeypatch.setattr(keras, "list_tensors", bounded_calls.loop)
    monkeypatch.setattr(keras, "_LIST_SECONDS", 0.5)
    message = timed_refusal(keras_file, 30)
    assert message == (
        f"{keras_file}: expected a Keras HDF5 file, but it cannot be read (its structure is not "
        "read within 0.5 seconds of computing). It is truncated or damaged; fetch it again."
    )


# --- random damage, judged by h5py ----------------------------------------------------------------


def test_random_damage_is_refused_or_read_as_h5py_reads_it(tmp_path):
    """The structure is damaged; the judge is h5py, in a process with bounds, too."""
    data = write_keras(tmp_path / "whole.h5", ARRAYS).read_bytes()
    numbers = np.zeros(len(data), bool)

    def mark(name, found):
        if isinstance(found, h5py.Dataset):
            numbers[found.id.get_offset() : found.id.get_offset() + found.nbytes] = True

    with h5py.File(tmp_path / "whole.h5") as file:
        file.visititems(mark)
    places = np.flatnonzero(~numbers & (np.frombuffer(data, np.uint8) != 0)).tolist()
    generator = random.Random(17)
    found, refused = {}, []
    for number in range(8):
        damaged = bytearray(data)
        for at in generator.sample(places, 1 + number % 2):
            damaged[at] = generator.randrange(256)
        path = tmp_path / f"{number}.h5"
        path.write_bytes(damaged)
        try:
            with open_source(path) as source:
                arrays = [tensor.read().astype("f8") for tensor in source.tensors.values()]
                found[str(path)] = sorted(float(array.sum()) for array in arrays)
        except BitzooError as error:
            refused.append(str(error))
    assert all(message.startswith(f"{tmp_path}") for message in refused)
    assert len(found) + len(refused) == 8
    assert found
    assert refused
    judged = run_limited(bounded_calls.sums_of_weights, list(found), cpu_seconds=20, memory=1 << 29)
    for path, sums in zip(found, judged, strict=True):
        assert found[path] == pytest.approx(sorted(sums.values())), path


def test_h5py_is_not_loaded_here_to_read(keras_file):
    code = (
        "import sys; from pathlib import Path; from bitzoo.converters.open import open_source\n"
        f"open_source(Path({str(keras_file)!r})).close(); print('h5py' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
