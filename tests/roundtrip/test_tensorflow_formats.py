"""Checkpoints that TensorFlow itself wrote, once for all tests, in a process of its own."""

import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from servers import FileServer

import bitzoo
from bitzoo.converters import identify
from bitzoo.converters.convert import convert
from bitzoo.converters.formats import tar as tar_format
from bitzoo.converters.formats.checkpoint_formats import Target
from bitzoo.converters.open import open_source
from bitzoo.converters.parity import logits
from bitzoo.converters.parity.verify import convert_and_prove
from bitzoo.errors import CheckpointError
from bitzoo.zoo.conversion import convert as convert_named

ARRAYS = make_checkpoint((2, 1, 1, 1), seed=3)
pytestmark = pytest.mark.full_size  # not by their size: TensorFlow takes half a minute

WRITER = Path(__file__).parents[1] / "tensorflow_files.py"
AMBIGUOUS = "The variables' names are ambiguous, so their object paths were used."
MOMENTUM = r"Skipped \d+ tensors of training state: .*"


def data_section(path):
    data = path.read_bytes()
    return data[8 + struct.unpack("<Q", data[:8])[0] :]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorflow")
    source = write_npz(folder / "bit.npz", ARRAYS)
    convert(source, folder / "ours.h5", target=Target("h5"))
    convert(source)
    command = [sys.executable, str(WRITER), str(source), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def expected(files):
    return data_section(files / "bit.safetensors")


FORMS = {
    "tf1": ("npz", MOMENTUM),
    "tf1/model.ckpt-1": ("npz", MOMENTUM),
    "tf1/model.ckpt-1.index": ("npz", MOMENTUM),
    "module": ("npz", ""),
    "module/variables/variables": ("npz", ""),
    "unique_saved_model": ("keras", ""),
    "unique_saved_model/variables/variables": ("keras", ""),
    "ambiguous_saved_model": ("tf2", AMBIGUOUS),
    "called_checkpoint": ("tf2", f"{AMBIGUOUS} {MOMENTUM}"),
    "called_checkpoint/ckpt-1": ("tf2", f"{AMBIGUOUS} {MOMENTUM}"),
    "called_weights": ("tf2", AMBIGUOUS),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_bits(tmp_path, files, expected, form):
    names, notes = FORMS[form]
    with open_source(files / form) as source:
        assert source.names == names
    conversion = convert(files / form, tmp_path / "a.safetensors", compare=True)
    assert data_section(conversion.output) == expected
    assert conversion.weights.differing == ()
    assert re.fullmatch(notes, " ".join(conversion.notes))
    if notes.startswith("Left"):
        assert "global_step" in conversion.notes[0]


@pytest.mark.parametrize(
    ("form", "way"),
    [
        ("module", "signature default, output default, images in [0, 1]"),
        ("unique_saved_model", "signature serving_default, output logits, images in [-1, 1]"),
        ("ambiguous_saved_model", "signature serving_default, output logits, images in [-1, 1]"),
    ],
)
def test_the_logits_of_a_module_are_proven_by_all_oracles(tmp_path, files, monkeypatch, form, way):
    monkeypatch.setattr(logits, "PROBES", ((48, 1),))
    _, report = convert_and_prove(files / form, tmp_path / "a.safetensors")
    assert report.passed
    figures = {(proof.oracle.split()[0], proof.dtype): proof for proof in report.logits}
    assert set(figures) == {
        (oracle, dtype) for oracle in ("NumPy", "TensorFlow") for dtype in ("float64", "float32")
    } | {("the", "float32")}
    for oracle in ("NumPy", "TensorFlow"):
        assert figures[oracle, "float64"].relative_l2 < 1e-12
    own = figures["the", "float32"]
    assert own.oracle == f"the SavedModel's own graph ({way})"
    assert 0 < own.relative_l2 < 1e-5


def test_the_network_computes_what_keras_computed(tmp_path, files):
    import torch

    import bitzoo

    model = bitzoo.create_model(
        convert(files / "called_weights", tmp_path / "a.safetensors").output, True
    )
    images = np.random.default_rng(1).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    theirs = np.load(files / "called_logits.npy")
    assert np.linalg.norm(found - theirs) / np.linalg.norm(theirs) < 1e-5  # float32 rounding


def test_keras_loads_our_h5(files):
    """By position, as `load_weights` of a subclassed model goes."""
    assert (files / "called_loads_ours").read_text() == "True"


def test_the_shard_name_that_the_hubs_serve(tmp_path, files, expected):
    module = tmp_path / "m.tfhub"
    shutil.copytree(files / "module", module)
    (module / "variables" / "variables.data-00000-of-00001").rename(
        module / "variables" / "variables.data@1"
    )
    assert data_section(convert(module, compare=True).output) == expected
    shard = module / "variables" / "variables.data@1"
    assert data_section(convert(shard, tmp_path / "b.safetensors").output) == expected


@pytest.mark.parametrize("top", ["", "folder"])
def test_an_archive_of_a_module(tmp_path, files, expected, top):
    archive = tmp_path / "module.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(files / "module", arcname=top or ".")
    conversion = convert(archive, compare=True)
    assert conversion.output == tmp_path / "module.safetensors"
    assert data_section(conversion.output) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "module.safetensors",
        "module.tar.gz",
    ]


def test_an_archive_is_unpacked_once_and_identified_once(tmp_path, files, monkeypatch):
    archive = tmp_path / "module.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(files / "module", arcname=".")
    unpacked: list[str] = []
    identified: list[str] = []

    def count(module, name, calls, subject):
        original = getattr(module, name)

        def call(*arguments):
            calls.append(subject(arguments[0]))
            return original(*arguments)

        monkeypatch.setattr(module, name, call)

    count(tar_format, "_unpack", unpacked, lambda path: path.name)
    count(identify, "_candidates", identified, lambda source: source.path.name)
    result = bitzoo.convert(archive, check="weights")
    assert result.parity.passed
    assert unpacked == ["module.tar.gz"]
    assert identified.count("module.tar.gz") == 1
    assert len(identified) == 3  # what is written is read anew: while it is compared, and finished


@pytest.mark.parametrize("shard", ["variables.data@1", "variables.data-00000-of-00001"])
def test_a_catalogue_name_by_its_tfhub_module(tmp_path, files, expected, monkeypatch, shard):
    name = "BiT-M-R50x1-run0-caltech101"
    module = {
        "saved_model.pb": files / "module" / "saved_model.pb",
        "tfhub_module.pb": files / "module" / "tfhub_module.pb",
        "variables/variables.index": files / "module" / "variables" / "variables.index",
        f"variables/{shard}": files / "module" / "variables" / "variables.data-00000-of-00001",
    }
    served = {f"vtab/{name}.tfhub/{at}": path.read_bytes() for at, path in module.items()}
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    with FileServer(served) as server:
        monkeypatch.setenv("BITZOO_MIRROR", server.url)
        result = convert_named(
            name, tmp_path / "a.safetensors", source_format="tfhub", check="weights"
        )
    assert data_section(tmp_path / "a.safetensors") == expected
    assert f"Fetched as {name} (R50x1, 102 classes), but its" in " ".join(result.notes)
    assert not list((tmp_path / "cache" / "downloads" / "tfhub").glob("*.tfhub/*"))


def test_create_model_takes_any_form(tmp_path, files):
    import torch

    import bitzoo

    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = bitzoo.create_model(files / "bit.npz", True)(images)
    for form in ("module", "tf1/model.ckpt-1", "ours.h5"):
        assert torch.equal(bitzoo.create_model(files / form, True)(images), expected)


# --- what is wrong with a file --------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, files):
    shutil.copytree(files / "module", tmp_path / "m")
    return tmp_path / "m"


def refused(module, said):
    before = sorted(str(path) for path in module.parent.rglob("*"))
    with pytest.raises(CheckpointError, match=said):
        convert(module, compare=True)
    assert sorted(str(path) for path in module.parent.rglob("*")) == before


def test_an_index_without_its_shard(module):
    (module / "variables" / "variables.data-00000-of-00001").unlink()
    refused(module, r"variables\.index needs the shard variables\.data-00000-of-00001 .*is missing")


def test_a_shard_with_another_byte(module):
    shard = module / "variables" / "variables.data-00000-of-00001"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    refused(module, r"expected a TensorFlow checkpoint, but it cannot be read .*[Cc]hecksum")


def test_a_truncated_shard_and_index(module):
    shard = module / "variables" / "variables.data-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:1000])
    refused(module, r"expected a TensorFlow checkpoint, but it cannot be read")
    index = module / "variables" / "variables.index"
    index.write_bytes(index.read_bytes()[:100])
    refused(module, r"expected a TensorFlow checkpoint, but it cannot be read")


@pytest.mark.parametrize("form", ["tf1", "module", "ambiguous_saved_model", "called_weights"])
def test_without_tensorflow(tmp_path, files, expected, form):
    """In a process where it cannot be imported, as for most users."""
    hidden = Path(__file__).parents[1] / "without_tensorflow"
    output = tmp_path / "a.safetensors"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bitzoo",
            "convert",
            "--src",
            str(files / form),
            "--dst",
            str(output),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(hidden), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert data_section(output) == expected


def test_a_folder_with_several_checkpoints(tmp_path, files):
    folder = tmp_path / "runs"
    folder.mkdir()
    for number in (1, 2):
        for path in (files / "tf1").glob("model.ckpt-1.*"):
            shutil.copy(path, folder / path.name.replace("-1.", f"-{number}."))
    with pytest.raises(
        CheckpointError, match=r"expected one checkpoint, found 2 \(model\.ckpt-1, "
    ):
        convert(folder)
    (folder / "checkpoint").write_text('model_checkpoint_path: "/gone/model.ckpt-2"\n')
    assert convert(folder).inventory.num_classes == 10


SAVE_AVERAGES = """
import sys, numpy as np, tensorflow as tf
arrays = np.load(sys.argv[1])
names, values = [], []
for name in arrays.files:
    names += [name, f"{name}/ExponentialMovingAverage"][: 2 if "kernel" in name else 1]
    values += [arrays[name], arrays[name] * 2][: 2 if "kernel" in name else 1]
names.append("global_step")
values.append(np.int64(3))
tf.raw_ops.SaveV2(
    prefix=sys.argv[2], tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
)
"""


def test_moving_averages_of_a_tf1_checkpoint(tmp_path):
    source, prefix = write_npz(tmp_path / "bit.npz", ARRAYS), tmp_path / "model.ckpt"
    command = [sys.executable, "-c", SAVE_AVERAGES, str(source), str(prefix)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    raw = dict(ARRAYS)
    averages = {name: array * 2 if "kernel" in name else array for name, array in raw.items()}
    for weights, expected in ((None, averages), ("ema", averages), ("raw", raw)):
        with open_source(prefix, weights=weights) as opened:
            assert opened.taken == (weights or "ema")
            assert opened.tensors.keys() == expected.keys()
            for name, array in expected.items():
                assert np.array_equal(opened.tensors[name].read(), array), name
            other = "raw" if opened.taken == "ema" else "ema"
            assert f'`weights="{other}"` takes the others.' in opened.notes[0]
