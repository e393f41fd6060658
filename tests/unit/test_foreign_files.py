"""What people mistake for a checkpoint is named for what it is, and bounded before it is read."""

import bz2
import gzip
import io
import json
import os
import pickle
import tarfile
import tempfile
import zipfile
from typing import Any

import h5py
import numpy as np
import pytest
from checkpoints import as_timm, make_checkpoint, write_npz
from safetensors.numpy import save_file

from bitzoo.converters import limits
from bitzoo.converters.identify import identify
from bitzoo.converters.open import open_source
from bitzoo.errors import CheckpointError
from bitzoo.files import sha256_of

ARRAYS: dict[str, Any] = make_checkpoint(num_classes=2)


def refusal(path):
    """The message about a file, which is short and names it."""
    with pytest.raises(CheckpointError) as caught, open_source(path) as source:
        identify(source)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message) <= 6_000
    assert message.replace("\n", "").isprintable()
    return message


def onnx_model():
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    info = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", info[:1], info[1:])
    return onnx.helper.make_model(graph).SerializeToString()


FILES = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Run `git lfs pull`"),
    "onnx": (onnx_model, "found an ONNX model"),
    "onnx of torch": (b"\x08\x08\x12\x07pytorch\x1a\x052.4.0", "found an ONNX model"),
    "tflite": (b"\x1c\0\0\0TFL3\x14\0", "found a TensorFlow Lite model"),
    "saved_model.pb": (
        b"\x08\x01\x12\xf2\x8a",
        "Give the folder with saved_model.pb and variables",
    ),
    "frozen graph": (
        b"\n\x1b\n\x05input\x12\x0bPlaceholder*",
        "found a frozen graph of TensorFlow",
    ),
    "openvino": (b'<?xml version="1.0"?>\n<net name="m" version="11">', "found an OpenVINO model"),
    "flax": (b"\x81\xa6params\x81\xa4bit", "found MessagePack data, as Flax writes"),
    "flax, many": (b"\xde\x00\x20\xa5stage", "found MessagePack data, as Flax writes"),
    "list": (b'model_checkpoint_path: "model.ckpt-1"\n', "found TensorFlow's list of checkpoints"),
    "csv": (b"path,label\na.png,cat\n", "found text that begins with 'path,label'"),
    "json": (b'{"architectures": ["Bit"]}', "found JSON text. Give the file with the weights"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(20), "found a picture"),
    "pdf": (b"%PDF-1.7\n", "found a PDF document"),
    "matlab": (b"MATLAB 5.0 MAT-file, Platform", "found a MATLAB file"),
    "gguf": (b"GGUF\x03\0\0\0", "found a GGUF file of a language model"),
    "bz2": (bz2.compress(b"a"), "found a compressed file. Unpack it"),
    "zeros": (bytes(5_000), "found zeros: a download that was interrupted"),
    "old pickle": (pickle.dumps({"a": 1}, protocol=0), "found an old pickle as text"),
    "noise": (b"\x01\x02\x03\x04" * 100, "found an unknown format"),
}


@pytest.mark.parametrize("kind", FILES)
def test_foreign_files_are_named(tmp_path, kind):
    data, said = FILES[kind]
    path = tmp_path / "model.bin"
    path.write_bytes(data() if callable(data) else data)
    assert said in refusal(path)


ZIPS = {
    "keras 3": (
        ["metadata.json", "config.json", "model.weights.h5"],
        "a model of Keras 3 (.keras)",
    ),
    "saved model": (["m/saved_model.pb", "m/variables/variables.index"], "archive of a SavedModel"),
    "folder": (["m/config.json", "m/model.safetensors"], "a zip archive of checkpoint files"),
    "other": (["a.txt"], "a zip file, but not an .npz checkpoint"),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_zip_archives_are_named(tmp_path, kind):
    names, said = ZIPS[kind]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    message = refusal(tmp_path / "a.zip")
    assert f"expected only arrays (.npy), found a member named {names[0]!r}. This is " in message
    assert said in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("_CHECKPOINT_METADATA", "found a checkpoint of Orbax (JAX) there"),
        ("manifest.ocdbt", "found a checkpoint of Orbax (JAX) there"),
        (".metadata", "found a distributed checkpoint of torch (DCP) there. Join it: python -m "),
        ("flax_model.msgpack", "found a folder with Flax weights only there"),
        ("config.json", "without its weights there. Download model.safetensors into it."),
        ("notes.txt", "found a folder there. Check the path."),
    ],
)
def test_folders_are_named(tmp_path, name, said):
    (tmp_path / name).write_text("{}")
    assert said in refusal(tmp_path)


@pytest.mark.parametrize("inner", ["h5", "npz", "text"])
def test_compressed_files_that_are_no_archive(tmp_path, inner):
    if inner == "h5":
        with h5py.File(tmp_path / "a", "w") as file:
            file["x"] = 1.0
        said = "found an HDF5 file (.h5), compressed with gzip"
    elif inner == "npz":
        np.savez(tmp_path / "a.npz", x=np.zeros(3))
        (tmp_path / "a.npz").rename(tmp_path / "a")
        said = "found a zip file, as .npz and .pth are, compressed with gzip"
    else:
        (tmp_path / "a").write_text("hello")
        said = "found text that begins with 'hello', compressed with gzip"
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress((tmp_path / "a").read_bytes()))
    assert f"{said}. Run gunzip on it" in refusal(path)


# --- archives -------------------------------------------------------------------------------------


def tar_of(path, *members):
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "name", ["a" * 300, "a/" * 2_000 + "b", "\u00e9" * 200], ids=["long", "deep", "bytes"]
)
def test_names_in_an_archive_that_no_disk_takes(tmp_path, name):
    message = refusal(tar_of(tmp_path / "a.tar.gz", (name, b"x")))
    assert "expected names of at most 255 bytes, found a member named" in message
    assert f"({len(name):,} characters)" in message


def test_members_that_exclude_each_other(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    message = refusal(tar_of(tmp_path / "a.tar.gz", ("a", b"x"), ("a/b", b"x")))
    assert "found members that exclude each other" in message
    assert os.listdir(tmp_path / "temporary") == []


def test_an_archive_of_zeros_is_not_unpacked(tmp_path):
    path = tar_of(tmp_path / "a.tar.gz", ("m/zeros", bytes(80 << 20)))
    message = refusal(path)
    assert f"its contents claim {80 << 20:,} bytes, but the file has only" in message


# --- bytes promised, bytes there ------------------------------------------------------------------


def test_a_compressed_npz_of_zeros_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    """Five megabytes claimed 1.9 GB; what compresses like weights is read."""
    zeros = dict(ARRAYS)
    zeros["resnet/head/conv2d/kernel"] = np.zeros((1, 1, 1024, 30_000), np.float32)
    zeros["resnet/head/conv2d/bias"] = np.zeros(30_000, np.float32)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **zeros)
    message = refusal(path)
    claimed = sum(array.nbytes for array in zeros.values())
    assert f"its contents claim {claimed:,} bytes, but the file has only" in message
    assert "expected at most 16 times as many" in message
    np.savez_compressed(path, **ARRAYS)
    with open_source(path) as source:
        assert identify(source).num_classes == 2
    monkeypatch.setattr(limits, "ALWAYS_ALLOWED", 0)
    with open_source(path) as source:  # weights need no exception
        assert identify(source).num_classes == 2


# --- npz, safetensors, shards ---------------------------------------------------------------------


def test_a_shape_of_truth_values(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, {"resnet/group_norm/gamma": np.zeros((1, 64), np.float32)})
    data = path.read_bytes()
    new = b"'shape': (True, 64), }"
    at = data.index(b"'shape': (1, 64), }")
    path.write_bytes(data[:at] + new + data[at + len(new) :])
    assert "no readable .npy header (an impossible shape of 2 dimensions)" in refusal(path)


def test_a_member_with_another_name_at_its_place(tmp_path):
    """NumPy refuses it; the two names are read by different programs."""
    path = write_npz(tmp_path / "a.npz", ARRAYS)
    data = bytearray(path.read_bytes())
    at = data.index(b"resnet/group_norm/gamma.npy")
    data[at : at + 6] = b"resNET"
    path.write_bytes(data)
    with pytest.raises(zipfile.BadZipFile), np.load(path) as file:
        file["resnet/group_norm/gamma"]
    assert "gamma.npy' has another name at its position in the file" in refusal(path)


@pytest.mark.parametrize("code", ["I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64"])
def test_dtypes_of_safetensors_that_are_no_weights(tmp_path, code):
    header = {"step": {"dtype": code, "shape": [1], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert f"tensor 'step' is stored as {code}, expected plain floats (F32; F16," in refusal(path)


def test_half_a_character_in_metadata(tmp_path):
    arrays = {n: np.ascontiguousarray(a) for n, a in as_timm(ARRAYS).items()}
    save_file(arrays, tmp_path / "a.safetensors", metadata={"note": "abcdef"})
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data.replace(b"abcdef", b"\\ud800"))
    assert "its safetensors metadata has half a character" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["a" * 70_000, "\u00e9" * 200])
def test_names_of_shards_that_no_disk_takes(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"stem.conv.weight": name}}))
    message = refusal(index)
    assert "expected names of files in its own folder, found" in message
    assert len(message) < 700


def test_the_reader_changes_nothing(tmp_path):
    path = write_npz(tmp_path / "a.npz", ARRAYS)
    before = sha256_of(path)
    with open_source(path) as source:
        identify(source)
    assert (sha256_of(path), os.listdir(tmp_path)) == (before, ["a.npz"])
