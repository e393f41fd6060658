"""Google's `.npz` to safetensors and back, bit for bit, checked with timm's own loader.

What the output should hold is never taken from bitzoo's tables: timm reads the same `.npz` by its
own code into its own network, and the two state dicts must be equal in every bit.
"""

import errno
import hashlib
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import TINY, as_timm, make_checkpoint, timm_name, write_npz
from safetensors import safe_open
from safetensors.numpy import load, load_file, save
from timm.models.resnetv2 import ResNetV2

import bitzoo
from bitzoo.catalogue.model_info import ModelInfo, Provenance
from bitzoo.converters import streaming
from bitzoo.converters.convert import convert, default_output
from bitzoo.converters.formats.npz import write_npz as write_released_npz
from bitzoo.converters.key_mapping import name_of, slot_of
from bitzoo.converters.open import open_source
from bitzoo.converters.parity.verify import Check, convert_and_prove, load_reports, save_report
from bitzoo.errors import CheckpointError, ParityError, UsageError
from bitzoo.models.architecture import ARCHITECTURES

R50, R101, R152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
SMALL: dict[str, Any] = make_checkpoint()
MULTIPLE = make_checkpoint(seed=1)
STEM = "resnet/root_block/standardized_conv2d/kernel"


def make_timm(depths, width, num_classes, device=None, in_chans=3):
    return ResNetV2(
        layers=list(depths),
        width_factor=width,
        num_classes=num_classes,
        in_chans=in_chans,
        stem_type="fixed",
        device=device,
    )


def bits(tensors):
    """Name -> shape and bytes; equal only if every bit is."""
    return {name: (tuple(t.shape), np.asarray(t).tobytes()) for name, t in tensors.items()}


def data_section(path):
    data = path.read_bytes()
    return data[8 + struct.unpack("<Q", data[:8])[0] :]


@pytest.fixture(scope="module")
def expected():
    """The data section that every form of SMALL converts to, as the safetensors library lays it."""
    tensors = {name: np.ascontiguousarray(array) for name, array in as_timm(SMALL).items()}
    raw = save(tensors)
    assert bits(load(raw)) == bits(tensors)
    return raw[8 + struct.unpack("<Q", raw[:8])[0] :]


# --- against timm's loader ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depths", "width", "num_classes"),
    [
        (TINY, 0.5, 10),
        ((2, 1, 1, 1), 0.5, 7),
        ((1, 1, 1, 2), 1, 1),
        (TINY, 0.5, 0),
        (R50, 0.5, 5),
        (R101, 0.5, 5),
        (R152, 0.5, 5),
        pytest.param(R50, 1, 21843, marks=pytest.mark.full_size),
    ],
)
def test_timm_reads_the_same_bits_from_source_and_output(tmp_path, depths, width, num_classes):
    arrays = make_checkpoint(depths, width, num_classes, seed=3)
    source = write_npz(tmp_path / "a.npz", arrays)
    conversion = convert(source, compare=True)
    theirs = make_timm(depths, width, num_classes, device="meta").to_empty(device="cpu")
    theirs.load_pretrained(str(source))
    assert bits(load_file(conversion.output)) == bits(theirs.state_dict())
    assert conversion.inventory.num_params == sum(array.size for array in arrays.values())
    assert conversion.weights.differing == ()


def test_mapping_back_gives_the_source(tmp_path):
    """Into HWIO and Google's names by hand; the files are equal in every byte of data."""
    output = convert(write_npz(tmp_path / "a.npz", SMALL)).output
    ours = load_file(output)
    back = {name: ours[timm_name(name)] for name in SMALL}
    back = {
        name: np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array
        for name, array in back.items()
    }
    assert bits(back) == bits(SMALL)


def test_metadata_and_layout(tmp_path, expected):
    source = write_npz(tmp_path / "mine.npz", SMALL)
    assert default_output(source) == tmp_path / "mine.safetensors"
    conversion = convert(source)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    assert conversion.sha256 == sha256
    assert conversion.output == tmp_path / "mine.safetensors"
    assert data_section(conversion.output) == expected
    with safe_open(conversion.output, "np") as file:
        metadata = file.metadata()
        record = ModelInfo.from_dict(json.loads(metadata.pop("model_info")))
        assert record == ModelInfo("R(1,1,1,1)x0.5", 10, provenance=Provenance("mine.npz", sha256))
        assert metadata == {
            "format": "pt",
            "architecture": "R(1,1,1,1)x0.5",
            "num_classes": "10",
            "source": "mine.npz",
            "source_sha256": sha256,
            "bitzoo_version": bitzoo.__version__,
        }


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_input_channels(tmp_path, in_chans):
    arrays = make_checkpoint(in_chans=in_chans)
    conversion = convert(write_npz(tmp_path / "a.npz", arrays), compare=True)
    assert conversion.inventory.architecture.in_chans == in_chans
    assert f"and {in_chans} input channels" in conversion.inventory.title
    assert bits(load_file(conversion.output)) == bits(as_timm(arrays))


def test_a_head_of_one_class_is_not_taken_for_a_vector(tmp_path):
    arrays = make_checkpoint(num_classes=1)
    output = convert(write_npz(tmp_path / "a.npz", arrays), compare=True).output
    assert load_file(output)["head.fc.weight"].shape == (1, 1024, 1, 1)


# --- the key mapping ------------------------------------------------------------------------------


def released_names(depths):
    """Every name of a released npz, from the table in the released code's own words."""
    yield STEM
    for block, depth in enumerate(depths, start=1):
        for unit in range(1, depth + 1):
            scope = f"resnet/block{block}/unit{unit:02d}"
            for branch in "abc":
                yield f"{scope}/{branch}/group_norm/gamma"
                yield f"{scope}/{branch}/group_norm/beta"
                yield f"{scope}/{branch}/standardized_conv2d/kernel"
            if unit == 1:
                yield f"{scope}/a/proj/standardized_conv2d/kernel"
    for kind in ("group_norm/gamma", "group_norm/beta", "head/conv2d/kernel", "head/conv2d/bias"):
        yield f"resnet/{kind}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_map_both_ways(name):
    depths, width = {"R50": R50, "R101": R101, "R152": R152}[name[:-2]], int(name[-1])
    network = make_timm(depths, width, 21843, device="meta")
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    names = list(released_names(depths))
    assert len(names) == len(set(names)) == {"R50": 153, "R101": 306, "R152": 459}[name[:-2]]
    ours = ARCHITECTURES[name].shapes(21843)
    assert {name_of(slot, "timm"): shape for slot, shape in ours.items()} == shapes
    for released in names:
        slot = slot_of(released, "npz")
        assert slot in ours
        assert name_of(slot, "npz") == released
        assert name_of(slot, "timm") == timm_name(released)
        assert slot_of(timm_name(released), "timm") == slot
        assert slot_of(released, "timm") is None
        assert slot_of(timm_name(released), "npz") is None


@pytest.mark.parametrize(
    "name",
    [
        "resnet/block1/unit1/a/group_norm/gamma",
        "resnet/block0/unit01/a/group_norm/gamma",
        "resnet/block5/unit01/a/group_norm/gamma",
        "resnet/block1/unit01/d/group_norm/gamma",
        "resnet/block1/unit01/b/proj/standardized_conv2d/kernel",
        "resnet/block1/unit01/a/group_norm/gamma\n",
        "resnet/block1/unit01/a/group_norm/gamma/",
        "RESNET/group_norm/gamma",
        "block1/unit01/a/group_norm/gamma",
        "resnet/head/conv2d/kernel/Momentum",
        "",
    ],
)
def test_other_names_are_not_taken(name):
    assert slot_of(name, "npz") is None


# --- forms of the input ---------------------------------------------------------------------------


def write_each(path, arrays, method=zipfile.ZIP_STORED, force_zip64=False):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=force_zip64) as member:
                np.lib.format.write_array(member, array)


def renumbered(arrays):
    """As Keras numbers its layers: standardized_conv2d, standardized_conv2d_1, ..."""
    count = iter(range(len(arrays)))
    numbered = {}
    for name, array in arrays.items():
        number = next(count) if "standardized_conv2d" in name else 0
        new = f"standardized_conv2d_{number}" if number else "standardized_conv2d"
        numbered[name.replace("standardized_conv2d", new)] = array
    return numbered


def shuffled(arrays):
    names = sorted(arrays, key=lambda name: hashlib.md5(name.encode()).digest())
    return {name: arrays[name] for name in names}


FORMS = {
    "savez": lambda path: np.savez(path, **SMALL),
    "savez_compressed": lambda path: np.savez_compressed(path, **SMALL),
    "bitzoo's own writer": lambda path: write_released_npz(path, SMALL.items()),
    "stored without zip64": lambda path: write_each(path, SMALL),
    "stored with zip64": lambda path: write_each(path, SMALL, force_zip64=True),
    "packed with zip64": lambda path: write_each(path, SMALL, zipfile.ZIP_DEFLATED, True),
    "numbered layers": lambda path: np.savez(path, **renumbered(SMALL)),
    "another order": lambda path: np.savez(path, **shuffled(SMALL)),
    "reverse order": lambda path: np.savez(path, **dict(reversed(SMALL.items()))),
    "fortran order": lambda path: np.savez(
        path,
        **{name: np.asfortranarray(array) for name, array in SMALL.items()},  # type: ignore[arg-type]
    ),
    "big-endian": lambda path: np.savez(
        path, **{name: array.astype(">f4") for name, array in SMALL.items()}
    ),
    "float64": lambda path: np.savez(
        path, **{name: array.astype(np.float64) for name, array in SMALL.items()}
    ),
    "float64, big-endian, fortran": lambda path: np.savez(
        path,
        **{name: np.asfortranarray(array.astype(">f8")) for name, array in SMALL.items()},  # type: ignore[arg-type]
    ),
    "every form at once": lambda path: np.savez_compressed(
        path,
        **{  # type: ignore[arg-type]
            name: np.asfortranarray(array.astype((">f8", "<f4", ">f4")[index % 3]))
            for index, (name, array) in enumerate(shuffled(renumbered(SMALL)).items())
        },
    ),
}


_ROUNDED = "stored as float64, rounded to float32 (nearest); the dtype float64 would keep them."
NOTES = {
    "float64": (f"All tensors are {_ROUNDED}",),
    "float64, big-endian, fortran": (f"All tensors are {_ROUNDED}",),
    "every form at once": (f"15 of 45 tensors are {_ROUNDED}",),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_source_gives_the_same_file(tmp_path, expected, form):
    FORMS[form](tmp_path / "a.npz")
    conversion = convert(tmp_path / "a.npz", compare=True)
    assert data_section(conversion.output) == expected
    assert conversion.weights.passed
    assert conversion.notes == NOTES.get(form, ())


def test_float16_is_widened_exactly(tmp_path):
    arrays = {name: array.astype(np.float16) for name, array in SMALL.items()}
    arrays[STEM].flat[:3] = [6e-8, -65504, -0.0]  # the smallest, the largest, and a signed zero
    conversion = convert(write_npz(tmp_path / "a.npz", arrays), compare=True)
    wide = {name: array.astype(np.float32) for name, array in arrays.items()}
    assert bits(load_file(conversion.output)) == bits(as_timm(wide))
    note = "All tensors are stored as float16, whose numbers float32 holds exactly."
    assert conversion.notes == (note,)


def test_float64_is_rounded_to_the_nearest(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(array.shape) for name, array in SMALL.items()}
    conversion = convert(write_npz(tmp_path / "a.npz", arrays), compare=True)
    narrow = {name: array.astype(np.float32) for name, array in arrays.items()}
    assert bits(load_file(conversion.output)) == bits(as_timm(narrow))


def test_odd_numbers_keep_their_bits(tmp_path):
    """Denormals, signed zeros and the ends of the range go through no arithmetic."""
    patterns = np.array([0, 0x80000000, 1, 0x80000001, 0x7F7FFFFF, 0xFF7FFFFF, 0x00800000])
    arrays = {
        name: np.resize(patterns, array.shape).astype(np.uint32).view(np.float32)
        for name, array in SMALL.items()
    }
    conversion = convert(write_npz(tmp_path / "a.npz", arrays), compare=True)
    assert bits(load_file(conversion.output)) == bits(as_timm(arrays))


def test_safetensors_as_source(tmp_path, expected):
    first = convert(write_npz(tmp_path / "a.npz", SMALL)).output
    second = convert(first, tmp_path / "b.safetensors", compare=True)
    assert data_section(second.output) == expected
    theirs = make_timm(TINY, 0.5, 10)
    state = {name: torch.from_numpy(array) for name, array in load_file(first).items()}
    theirs.load_state_dict(state)
    assert bits(theirs.state_dict()) == bits(as_timm(SMALL))


def test_a_source_whose_name_is_not_utf8(tmp_path, expected):
    odd = tmp_path / os.fsdecode(b"caf\xe9.npz")
    shutil.copy(write_npz(tmp_path / "a.npz", SMALL), odd)
    output = convert(odd, tmp_path / "a.safetensors").output
    with safe_open(output, "np") as file:
        assert file.metadata()["source"] == "caf?.npz"
    assert data_section(output) == expected


def test_a_name_that_lies_is_told(tmp_path):
    conversion = convert(write_npz(tmp_path / "BiT-M-R50x1.npz", SMALL))
    assert conversion.model is None
    assert "Named like BiT-M-R50x1" in conversion.notes[0]
    assert "tensors are R(1,1,1,1)x0.5 with 10 classes. The tensors decide." in conversion.notes[0]


@pytest.mark.parametrize("piece_bytes", [1, 20_000, 1 << 20])
@pytest.mark.parametrize("block_bytes", [40_000, 70_000])
def test_any_size_of_block(tmp_path, monkeypatch, expected, block_bytes, piece_bytes):
    """Blocks and pieces of a few outputs, the last of them shorter."""
    monkeypatch.setattr(streaming, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(streaming, "PIECE_BYTES", piece_bytes)
    conversion = convert(write_npz(tmp_path / "a.npz", SMALL), compare=True)
    assert data_section(conversion.output) == expected


def test_a_disk_that_maps_nothing(tmp_path, monkeypatch, expected):
    """As some network disks, which refuse every memory map."""

    def refuse(*args, **kwargs):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(mmap, "mmap", refuse)
    conversion = convert(write_npz(tmp_path / "a.npz", SMALL), compare=True)
    assert conversion.weights.passed
    assert data_section(conversion.output) == expected


# --- all or nothing -------------------------------------------------------------------------------


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_after(bytes_done, error):
    """A progress callback that raises while blocks are under way."""

    def progress(task, done, total):
        if done >= bytes_done:
            raise error

    return progress


@pytest.mark.parametrize(
    "error", [RuntimeError("planted"), KeyboardInterrupt(), SystemExit(143), MemoryError()]
)
@pytest.mark.parametrize("bytes_done", [1, 6_000_000, 16_000_000])
def test_a_failure_on_the_way_leaves_nothing(tmp_path, error, bytes_done):
    source = write_npz(tmp_path / "a.npz", SMALL)
    before = set(threading.enumerate())
    with pytest.raises(type(error)):
        convert(source, progress=fail_after(bytes_done, error))
    assert names_in(tmp_path) == ["a.npz"]
    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_disk_that_fails_is_the_sources(tmp_path):
    """On the way the file's descriptors become a folder's, which cannot be read."""
    source = write_npz(tmp_path / "a.npz", SMALL)
    folder = os.open(tmp_path, os.O_RDONLY)

    def progress(task, done, total):
        for entry in Path("/proc/self/fd").iterdir():
            if os.path.realpath(entry) == str(source):
                os.dup2(folder, int(entry.name))

    with pytest.raises(CheckpointError, match=r"a\.npz: cannot be read \(Is a directory\)\. Copy"):
        convert(source, progress=progress)
    os.close(folder)
    assert names_in(tmp_path) == ["a.npz"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc")
def test_a_disk_that_fails_at_once(tmp_path):
    (tmp_path / "a.npz").symlink_to("/proc/self/mem")  # nothing is at its start
    with pytest.raises(CheckpointError, match=r"a\.npz: cannot be read \(Input/output error\)"):
        convert(tmp_path / "a.npz")


def test_a_failing_proof_leaves_nothing(tmp_path):
    source = write_npz(tmp_path / "a.npz", SMALL)
    seen = []

    def prove(original, conversion):
        assert original.path == source
        seen.append(conversion.output)
        assert conversion.output.is_file()
        assert names_in(tmp_path) == [conversion.output.parent.name, "a.npz"]
        raise ParityError("planted")

    with pytest.raises(ParityError, match="planted"):
        convert(source, prove=prove)
    assert seen[0] != tmp_path / "a.safetensors"
    assert names_in(tmp_path) == ["a.npz"]


def test_an_existing_output_is_kept_unless_forced(tmp_path, expected):
    source = write_npz(tmp_path / "a.npz", SMALL)
    output = tmp_path / "a.safetensors"
    output.write_text("mine")
    with pytest.raises(UsageError, match=r"a\.safetensors already exists.*`force=True`"):
        convert(source)
    with pytest.raises(RuntimeError, match="planted"):
        convert(source, force=True, progress=fail_after(9_000_000, RuntimeError("planted")))
    assert output.read_text() == "mine"
    assert names_in(tmp_path) == ["a.npz", "a.safetensors"]
    convert(source, force=True)
    assert data_section(output) == expected


def test_an_output_that_appeared_meanwhile_is_kept(tmp_path):
    source, output = write_npz(tmp_path / "a.npz", SMALL), tmp_path / "a.safetensors"

    def progress(task, done, total):
        output.write_text("somebody else's")

    with pytest.raises(UsageError, match=r"a\.safetensors already exists.*`force=True`"):
        convert(source, progress=progress)
    assert output.read_text() == "somebody else's"
    assert names_in(tmp_path) == ["a.npz", "a.safetensors"]


def test_places_that_cannot_be_written(tmp_path):
    source = write_npz(tmp_path / "a.npz", SMALL)
    with pytest.raises(UsageError, match=r"there is no folder .*absent\. Create it first"):
        convert(source, tmp_path / "absent" / "b.safetensors")
    with pytest.raises(UsageError, match=r"expected a file, found a folder\. Choose another `dst`"):
        convert(source, tmp_path, force=True)
    with pytest.raises(UsageError, match="there is no folder"):
        convert(source, source / "b.safetensors")
    assert names_in(tmp_path) == ["a.npz"]
    assert convert(source, tmp_path / ("n" * 255)).output.is_file()  # as long as names may be


def test_a_disk_without_room_is_refused_at_once(tmp_path, monkeypatch):
    source = write_npz(tmp_path / "a.npz", SMALL)
    size = 4 * sum(array.size for array in SMALL.values())
    usage = shutil.disk_usage(tmp_path)._replace(free=size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said = rf"a\.safetensors: needs {size:,} bytes, but its disk has only {size - 1:,} free\."
    with pytest.raises(UsageError, match=said):
        convert(source)
    assert names_in(tmp_path) == ["a.npz"]


def test_a_disk_that_fills_up(tmp_path, monkeypatch):
    source = write_npz(tmp_path / "a.npz", SMALL)
    real, written = os.pwrite, []

    def fill(descriptor, data, position):
        written.append(len(data))
        if sum(written) > 3_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", fill)
    with pytest.raises(UsageError, match=r"cannot be written \(No space left on device\)"):
        convert(source)
    assert names_in(tmp_path) == ["a.npz"]


SLOW = """
import sys, time
from bitzoo.converters.formats.safetensors import SafetensorsWriter
real = SafetensorsWriter.write
def slowly(self, *arguments):
    real(self, *arguments)
    time.sleep(0.3)
SafetensorsWriter.write = slowly
sys.argv = ["bitzoo-convert", "--src", sys.argv[1], "--check", "weights"]
from bitzoo.cli.main import convert_main
convert_main()
"""


def start_slowly(source):
    command = [sys.executable, "-c", SLOW, str(source)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)],
)
def test_a_signal_on_the_way_leaves_nothing_under_the_name(tmp_path, number, code):
    source = write_npz(tmp_path / "a.npz", SMALL)
    process = start_slowly(source)
    deadline = time.monotonic() + 60
    while names_in(tmp_path) == ["a.npz"]:  # until the temporary file is there
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert "a.safetensors" not in names_in(tmp_path)
    if number != signal.SIGKILL:  # which nobody can act upon
        assert names_in(tmp_path) == ["a.npz"]
    convert(source)
    assert bits(load_file(tmp_path / "a.safetensors")) == bits(as_timm(SMALL))


# --- side by side ---------------------------------------------------------------------------------


def test_conversions_at_once_keep_apart(tmp_path):
    """Eight at a time, in one folder, two of them to each output."""
    sources = [
        write_npz(tmp_path / "a.npz", SMALL),
        write_npz(tmp_path / "b.npz", MULTIPLE),
    ]

    def run(job):
        output = tmp_path / f"{job // 2}.safetensors"
        conversion, report = convert_and_prove(
            sources[job % 2], output, check=Check.WEIGHTS, force=True
        )
        save_report(report, tmp_path / "parity.json")
        return conversion.weights.passed

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [True] * 8
    outputs = [f"{number}.safetensors" for number in range(4)]
    assert names_in(tmp_path) == sorted([*outputs, "a.npz", "b.npz", "parity.json"])
    whole = [bits(as_timm(SMALL)), bits(as_timm(MULTIPLE))]
    for name in outputs:
        assert bits(load_file(tmp_path / name)) in whole
    reports = load_reports(tmp_path / "parity.json")
    assert sorted(reports) == outputs
    assert all(report["passed"] for report in reports.values())


def test_reports_saved_at_once_are_all_kept(tmp_path):
    source = write_npz(tmp_path / "a.npz", SMALL)
    _, report = convert_and_prove(source, tmp_path / "a.safetensors", check=Check.WEIGHTS)
    outputs = [f"{number}.safetensors" for number in range(64)]

    def save(name):
        save_report(replace(report, output={"name": name}), tmp_path / "parity.json")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, outputs))
    assert sorted(load_reports(tmp_path / "parity.json")) == sorted(outputs)


def test_two_processes_keep_both_entries_of_the_report(tmp_path):
    for name in ("a", "b"):
        write_npz(tmp_path / f"{name}.npz", SMALL)
    command = [sys.executable, "-m", "bitzoo", "convert", "--check", "weights", "--src"]
    running = [
        subprocess.Popen([*command, str(tmp_path / f"{name}.npz")], stdout=subprocess.DEVNULL)
        for name in ("a", "b")
    ]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    reports = json.loads((tmp_path / "parity.json").read_text())
    assert {name: report["source"]["name"] for name, report in reports.items()} == {
        "a.safetensors": "a.npz",
        "b.safetensors": "b.npz",
    }


@pytest.mark.parametrize(
    "content",
    [b"not json", b"[1, 2]", b'{"a": 1}', b'{"key": {"mine": true}}', b"\xff\xfe", b"[" * 100_000],
)
def test_a_file_that_holds_no_reports_is_not_overwritten(tmp_path, content):
    source = write_npz(tmp_path / "a.npz", SMALL)
    _, report = convert_and_prove(source, tmp_path / "b.safetensors", check=Check.WEIGHTS)
    path = tmp_path / "thesis.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"thesis\.json: expected reports of earlier proofs"):
        save_report(report, path)
    assert path.read_bytes() == content
    assert names_in(tmp_path) == ["a.npz", "b.safetensors", "thesis.json"]


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    source = write_npz(tmp_path / "a.npz", SMALL)
    _, report = convert_and_prove(source, tmp_path / "b.safetensors", check=Check.WEIGHTS)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UsageError, match=r"parity\.json: cannot be written \(No space left"):
        save_report(report, tmp_path / "parity.json")
    assert names_in(tmp_path) == ["a.npz", "b.safetensors"]


def test_a_source_that_changes_under_the_reader(tmp_path):
    """The checksum is of the bytes as they are read, so the output never gets its name."""
    source = write_npz(tmp_path / "a.npz", SMALL)
    with open_source(source) as opened:
        position = opened.tensors[STEM].offset  # type: ignore[attr-defined]
    changed: list[int] = []

    def change(task, done, total):
        if not changed:
            changed.append(done)
            with Path(source).open("r+b") as file:
                file.seek(position)
                file.write(b"\0\0\0\0")

    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    try:
        conversion = convert(source, compare=True, progress=change)
    except CheckpointError as error:
        assert "is damaged: expected CRC-32" in str(error)  # noqa: PT017 - either may happen
        assert names_in(tmp_path) == ["a.npz"]
    else:
        assert conversion.sha256 == digest
