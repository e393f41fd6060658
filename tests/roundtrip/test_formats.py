"""Every format in and out, bit for bit; outputs are checked with the libraries that read them."""

import json
import struct
import zipfile
from functools import partial
from itertools import pairwise, permutations
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from checkpoints import TINY, as_timm, make_checkpoint, write_npz
from formats import KERAS_FORMS, as_bit_pytorch, keras_weights, write_keras
from oracle.networks import run
from safetensors import safe_open
from safetensors.numpy import load_file
from timm.layers import StdConv2d
from timm.models.resnetv2 import ResNetV2
from tqdm import tqdm
from watched import watch

import bitzoo
from bitzoo.cli.quickstart import write_random_checkpoint
from bitzoo.converters import streaming
from bitzoo.converters.convert import convert, default_output
from bitzoo.converters.formats.checkpoint_formats import FORMATS, Target
from bitzoo.converters.parity import logits as logits_proof
from bitzoo.converters.parity import reference_tensorflow
from bitzoo.converters.parity.verify import Check, convert_and_prove, verify
from bitzoo.errors import CheckpointError, ParityError, UsageError
from bitzoo.models.architecture import ARCHITECTURES

R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)
ARRAYS = make_checkpoint((2, 1, 1, 1))
SMALL_STD = make_checkpoint(kernel_std=0.001, seed=5)
OTHERS = [name for name in FORMATS if name != "safetensors"]


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    """Small images and one oracle; tests/oracle has the large ones and the second."""
    monkeypatch.setattr(logits_proof, "PROBES", ((48, 1), (33, 2)))
    monkeypatch.setattr(reference_tensorflow, "is_installed", lambda: False)
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # transformers' bars would leave a thread


def bits(tensors):
    return {name: (tuple(t.shape), np.asarray(t).tobytes()) for name, t in tensors.items()}


UNKNOWN_IMAGES = (
    "How images are prepared is not known: preprocessor_config.json has the preprocessing of BiT's "
    "pre-training, and the record in config.json says that nothing is known."
)


def data_section(path):
    data = path.read_bytes()
    return data[8 + struct.unpack("<Q", data[:8])[0] :]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """ARRAYS in every format, each made from the safetensors file."""
    folder = tmp_path_factory.mktemp("family")
    first = convert(write_npz(folder / "bit.npz", ARRAYS)).output
    made = {"safetensors": first}
    for to in OTHERS:
        output = folder / f"made{FORMATS[to].ending}"
        conversion, report = convert_and_prove(first, output, Target(to), check=Check.WEIGHTS)
        assert report.passed
        assert conversion.notes == ((UNKNOWN_IMAGES,) if to == "transformers" else ())
        made[to] = output
    return made


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)).double()


def distance(found, expected):
    return float((found.detach() - expected).norm() / expected.norm())


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("to", OTHERS)
def test_there_and_back(tmp_path, family, to):
    back = convert(family[to], tmp_path / "back.safetensors", compare=True)
    assert back.weights.differing == ()
    assert data_section(back.output) == data_section(family["safetensors"])


@pytest.mark.parametrize("to", OTHERS)
def test_there_and_back_in_small_blocks(tmp_path, monkeypatch, family, to):
    """Blocks that cut tensors, and pieces that cut blocks; large ones read what is written."""
    first = family["safetensors"]
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 100_000)
    monkeypatch.setattr(streaming, "PIECE_BYTES", 30_000)
    there = convert(first, tmp_path / f"b{FORMATS[to].ending}", target=Target(to), compare=True)
    assert there.weights.passed
    back = convert(there.output, tmp_path / "back.safetensors", compare=True)
    assert back.weights.passed
    assert data_section(back.output) == data_section(first)
    monkeypatch.undo()
    assert verify(first, there.output, check=Check.WEIGHTS).passed


@pytest.mark.full_size  # not by its size: there are twenty
@pytest.mark.parametrize(("one", "other"), list(permutations(OTHERS, 2)))
def test_every_pair(tmp_path, family, one, other):
    middle = convert(
        family[one], tmp_path / f"b{FORMATS[other].ending}", target=Target(other)
    ).output
    back = convert(middle, tmp_path / "back.safetensors").output
    assert data_section(back) == data_section(family["safetensors"])


@pytest.mark.parametrize(
    "depths", [TINY, R50, pytest.param(R101, marks=pytest.mark.full_size)], ids=str
)
@pytest.mark.parametrize("to", OTHERS)
def test_released_depths_there_and_back(tmp_path, depths, to):
    source = write_npz(tmp_path / "a.npz", make_checkpoint(depths, 0.5, 5, seed=2))
    first = convert(source).output
    there = convert(first, tmp_path / f"b{FORMATS[to].ending}", target=Target(to)).output
    back = convert(there, tmp_path / "back.safetensors").output
    assert data_section(back) == data_section(first)


@pytest.mark.parametrize("to", OTHERS)
def test_without_a_head(tmp_path, to):
    first = convert(write_npz(tmp_path / "a.npz", make_checkpoint(num_classes=0))).output
    there = convert(first, tmp_path / f"b{FORMATS[to].ending}", target=Target(to), compare=True)
    assert there.inventory.num_classes == 0
    assert data_section(convert(there.output, tmp_path / "c.safetensors").output) == data_section(
        first
    )


MEMORY = 300 << 20
"""Peak resident memory of a command without torch, 60 MB of it Python with NumPy."""


@pytest.mark.full_size
@pytest.mark.timeout(600)
def test_memory_is_bounded_whatever_the_formats(tmp_path):
    """1.38 GB, with one tensor of 537 MB: outputs last, first, and again last in the file."""

    def peak(*words):
        code, _, err, memory, _ = watch(*words, "--check", "weights")
        assert code == 0, err  # which has lines of progress on a slow machine
        return memory

    source = tmp_path / "a.npz"
    write_random_checkpoint(source, ARCHITECTURES["R50x3"], 21_843)
    paths = [source, *(tmp_path / f"b{end}" for end in (".safetensors", ".npz", ".h5"))]
    for (one, other), to in zip(pairwise(paths), ("safetensors", "npz", "h5"), strict=True):
        assert peak("convert", "--src", one, "--dst", other, "--to", to, "--force") < MEMORY, to
    assert peak("verify", source, paths[-1]) < MEMORY
    half, again = tmp_path / "half.safetensors", paths[2]  # halves widen as they are read
    assert peak("convert", "--src", source, "--dst", half, "--dtype", "float16", "--force") < MEMORY
    assert peak("convert", "--src", half, "--dst", again, "--to", "npz", "--force") < MEMORY


def test_two_files_of_any_formats_verify(family, tmp_path):
    report = verify(family["h5"], family["bit_pytorch"])
    assert report.passed
    assert {proof.oracle.endswith("on the source's own names") for proof in report.logits} == {True}
    assert verify(family["transformers"], family["npz"], check=Check.WEIGHTS).passed
    other = dict(ARRAYS)
    other["resnet/head/conv2d/kernel"] = other["resnet/head/conv2d/kernel"] + np.float32(1)
    changed = write_keras(tmp_path / "b.h5", other)
    report = verify(family["transformers"], changed, check=Check.WEIGHTS)
    assert report.weights.differing == ("classifier.1.weight",)
    with pytest.raises(ParityError, match=r"1 of 54 tensors differ"):
        report.require()


def test_the_default_output_lies_beside_the_source(tmp_path):
    assert default_output(tmp_path / "m.npz", "h5") == tmp_path / "m.h5"
    assert default_output(tmp_path / "m.h5", "transformers") == tmp_path / "m-transformers"
    assert default_output(tmp_path / "m.tar.gz") == tmp_path / "m.safetensors"
    assert default_output(tmp_path / "m.pth.tar", "timm") == tmp_path / "m.timm.safetensors"


# --- Keras and PyTorch files in -------------------------------------------------------------------


@pytest.mark.parametrize("form", KERAS_FORMS)
@pytest.mark.parametrize("head", [10, 0])
def test_keras_forms(tmp_path, form, head):
    arrays = make_checkpoint(num_classes=head)
    conversion = convert(write_keras(tmp_path / "a.h5", arrays, form), compare=True)
    expected = {name: np.ascontiguousarray(array) for name, array in as_timm(arrays).items()}
    assert bits(load_file(conversion.output)) == bits(expected)
    assert conversion.weights.passed


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": True},
        {"compression": "gzip"},
        {"group": "model_weights"},
        {"split": True},
        {"dtype": "<f8"},
        {"dtype": ">f4"},
    ],
    ids=str,
)
def test_keras_files_stored_otherwise(tmp_path, options, family):
    conversion = convert(write_keras(tmp_path / "a.h5", ARRAYS, **options), compare=True)
    assert data_section(conversion.output) == data_section(family["safetensors"])


def test_a_keras_file_proves_its_logits_by_its_own_names(tmp_path):
    source = write_keras(tmp_path / "a.h5", ARRAYS, "tf23")
    _, report = convert_and_prove(source, tmp_path / "a.safetensors")
    assert report.passed
    for proof in report.logits:
        assert proof.oracle.endswith("on the source's own names")
        assert proof.relative_l2 < (1e-12 if proof.dtype == "float64" else 2e-5)


def test_a_mislabelled_file_is_told(tmp_path):
    """As public ones are: issue 47 of google-research/big_transfer."""
    conversion = convert(write_keras(tmp_path / "BiT-S-R50x3.h5", ARRAYS))
    assert conversion.model is None
    assert conversion.notes == (
        "Named like BiT-S-R50x3 (R50x3, 1,000 classes), but its tensors are R(2,1,1,1)x0.5 with "
        "10 classes. The tensors decide.",
    )


def test_pytorch_checkpoints(tmp_path, family):
    expected = data_section(family["safetensors"])
    state = as_bit_pytorch(ARRAYS)
    wrapped = {f"module.{name}": value for name, value in state.items()}
    training = {"step": 3, "model": wrapped, "optim": {"state": {}, "param_groups": []}}
    timm = {name: torch.from_numpy(array.copy()) for name, array in as_timm(ARRAYS).items()}
    files = {
        "plain.pth": state,
        "bit.pth.tar": training,
        "timm.pt": {"state_dict": timm, "epoch": 1},
        "channels_last.pth": {
            name: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in state.items()
        },
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in (*files, "old.pth"):
        conversion = convert(tmp_path / name, tmp_path / f"{name}.safetensors", compare=True)
        assert conversion.weights.passed
        assert data_section(conversion.output) == expected, name
        if name == "bit.pth.tar":
            assert conversion.notes == (
                "Took the weights under 'model'.",
                "Removed the prefix 'module.' from the names.",
                "Skipped training state: 'step', 'optim'.",
            )


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "1MB"}], ids=["whole", "sharded"])
def test_transformers_folders(tmp_path, family, options):
    network = load_transformers(family["transformers"])
    network.save_pretrained(tmp_path / "theirs", **options)
    shards = list((tmp_path / "theirs").glob("*.safetensors"))
    assert (len(shards) > 1) == bool(options)
    conversion = convert(tmp_path / "theirs", compare=True)
    assert conversion.output == tmp_path / "theirs.safetensors"
    assert data_section(conversion.output) == data_section(family["safetensors"])
    loaded = bitzoo.create_model(tmp_path / "theirs", pretrained=True).state_dict()
    ours = load_file(conversion.output)
    assert bits(loaded) == bits(ours)
    if options:
        index = tmp_path / "theirs" / "model.safetensors.index.json"
        again = convert(index, tmp_path / "b.safetensors").output
        assert data_section(again) == data_section(family["safetensors"])


def test_a_bare_transformers_encoder(tmp_path, family):
    load_transformers(family["transformers"]).bit.save_pretrained(tmp_path / "bare")
    conversion = convert(tmp_path / "bare", compare=True)
    assert conversion.inventory.num_classes == 0
    theirs = {name: array for name, array in as_timm(ARRAYS).items() if "head" not in name}
    assert bits(load_file(conversion.output)) == bits(
        {name: np.ascontiguousarray(array) for name, array in theirs.items()}
    )


# --- what others make of our files ----------------------------------------------------------------


def load_transformers(folder):
    from transformers import BitForImageClassification

    loaded: Any = BitForImageClassification.from_pretrained(folder, output_loading_info=True)
    network, info = loaded
    assert {key: list(value) for key, value in info.items() if value} == {}
    return network.eval()


def load_timm(path):
    conv = partial(StdConv2d, eps=1e-8)  # as timm makes its own BiT models
    half: Any = 0.5  # timm's annotation says int
    network = ResNetV2(
        list(TINY), num_classes=10, width_factor=half, stem_type="fixed", conv_layer=conv
    )
    state = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    network.load_state_dict(state, strict=True)
    return network.eval()


def test_npz_is_what_numpy_writes(family):
    with np.load(family["npz"]) as file:
        assert bits(file) == bits(ARRAYS)
    with zipfile.ZipFile(family["npz"]) as file:
        assert file.testzip() is None
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}


def test_h5_is_what_tensorflow_2_2_writes(family, tmp_path):
    theirs = write_keras(tmp_path / "theirs.h5", ARRAYS)
    with h5py.File(family["h5"]) as ours, h5py.File(theirs) as expected:
        assert list(ours.attrs["layer_names"]) == [
            *(name.encode() for name in keras_weights(ARRAYS) if name != "head/dense"),
            b"re_lu",
            b"global_average_pooling2d",
            b"head/dense",
        ]
        for layer in keras_weights(ARRAYS):
            names = list(expected[layer].attrs["weight_names"])
            assert list(ours[layer].attrs["weight_names"]) == names
            for name in names:
                array = ours[layer][name.decode()][()]
                assert array.dtype == np.float32
                assert array.tobytes() == expected[layer][name.decode()][()].tobytes()
                assert array.shape == expected[layer][name.decode()].shape
        assert ours.attrs["keras_version"] == "2.3.0-tf"


def test_bit_pytorch_is_its_state_dict(family):
    found = torch.load(family["bit_pytorch"], weights_only=True)
    assert bits(found) == bits(as_bit_pytorch(ARRAYS))


def test_transformers_loads_config_weights_and_processor(family):
    from PIL import Image
    from transformers import AutoImageProcessor

    network = load_transformers(family["transformers"])
    assert network.config.num_labels == 10
    assert network.config.hidden_sizes == [128, 256, 512, 1024]
    processor = AutoImageProcessor.from_pretrained(family["transformers"])
    picture = Image.new("RGB", (300, 280), (255, 0, 255))
    pixels = torch.as_tensor(np.asarray(processor(picture)["pixel_values"][0]))
    assert pixels.shape == (3, 224, 224)
    expected = torch.tensor([1.0, -1.0, 1.0])[:, None, None].expand_as(pixels)
    torch.testing.assert_close(pixels.float(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arrays", "eps_exact", "least", "most"),
    [
        (make_checkpoint(), False, 1e-9, 1e-5),
        (SMALL_STD, False, 1e-3, 1e-1),
        (SMALL_STD, True, 1e-10, 1e-6),
    ],
    ids=["he", "std 0.001", "std 0.001, eps exact"],
)
def test_peers_compute_the_reference_but_for_their_eps(
    tmp_path, images, arrays, eps_exact, least, most
):
    """In float64, where eps is all that is left; with kernels x10 only one rounding is."""
    source = write_npz(tmp_path / "a.npz", arrays)
    expected = run(arrays, images).logits
    for to, load in (("timm", load_timm), ("transformers", load_transformers)):
        output = convert(source, target=Target(to, eps_exact=eps_exact), compare=True).output
        network = load(output).double()
        found = network(images)
        logits = found.logits if to == "transformers" else found
        assert least < distance(logits, expected) < most, to


# --- eps-exact ------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["timm", "transformers"])
def test_eps_exact_files_are_marked_and_not_for_us(tmp_path, to):
    source = write_npz(tmp_path / "a.npz", SMALL_STD)
    conversion, report = convert_and_prove(
        source, tmp_path / f"x{FORMATS[to].ending}", target=Target(to, eps_exact=True)
    )
    assert report.passed
    assert max(proof.relative_l2 for proof in report.logits if proof.dtype == "float64") < 1e-6
    path = conversion.output / "model.safetensors" if to == "transformers" else conversion.output
    with safe_open(path, "np") as file:
        assert file.metadata()["kernel_scale"] == "10"
    assert verify(source, conversion.output).passed
    assert verify(conversion.output, source).passed
    said = r"found them multiplied by 10 \(made by `bitzoo convert --eps-exact`.*Use the file that"
    with pytest.raises(CheckpointError, match=said):
        bitzoo.create_model(conversion.output, pretrained=True)
    with pytest.raises(CheckpointError, match=said):
        convert(conversion.output, tmp_path / "b.npz", target=Target("npz"))
    if to == "transformers":  # trained and saved again: the mark stays
        load_transformers(conversion.output).save_pretrained(tmp_path / "trained")
        with safe_open(tmp_path / "trained" / "model.safetensors", "np") as file:
            assert "kernel_scale" not in file.metadata()
        with pytest.raises(CheckpointError, match=said):
            bitzoo.create_model(tmp_path / "trained", pretrained=True)


@pytest.mark.parametrize("to", ["safetensors", "npz", "h5", "bit_pytorch"])
def test_eps_exact_only_where_it_is_right(tmp_path, to):
    source = write_npz(tmp_path / "a.npz", ARRAYS)
    with pytest.raises(UsageError, match=r"Use it only to write timm or transformers"):
        convert(source, target=Target(to, eps_exact=True))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


# --- half precision -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "dtype"), [("safetensors", "float16"), ("transformers", "bfloat16")]
)
def test_rounded_numbers_say_so(tmp_path, to, dtype):
    source = write_npz(tmp_path / "a.npz", ARRAYS)
    conversion, report = convert_and_prove(
        source, tmp_path / f"b{FORMATS[to].ending}", target=Target(to, dtype=dtype)
    )
    path = conversion.output / "model.safetensors" if to == "transformers" else conversion.output
    rounded = getattr(torch, dtype)
    with safe_open(path, "pt") as file:
        metadata, found = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    exact = convert(source, tmp_path / f"c{FORMATS[to].ending}", target=Target(to)).output
    with safe_open(exact / "model.safetensors" if to == "transformers" else exact, "pt") as file:
        whole = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert all(torch.equal(found[name], whole[name].to(rounded)) for name in whole)
    moved = torch.cat([(found[name].double() - whole[name]).reshape(-1) for name in whole])
    everything = torch.cat([whole[name].double().reshape(-1) for name in whole])
    assert metadata["dtype"] == dtype
    stated = float(metadata["weights_relative_l2"])
    assert stated == pytest.approx(float(moved.norm() / everything.norm()), rel=1e-3)
    measured = max(proof.relative_l2 for proof in report.logits)
    assert float(metadata["logits_relative_l2"]) == pytest.approx(measured, rel=1e-3)
    assert 1e-5 < measured < (3e-2 if dtype == "bfloat16" else 3e-3)
    assert verify(source, conversion.output, check=Check.WEIGHTS).passed
    model = bitzoo.create_model(conversion.output, pretrained=True)
    stem = "stem.conv.weight" if to == "safetensors" else "bit.embedder.convolution.weight"
    assert torch.equal(model.state_dict()["stem.conv.weight"], found[stem].float())
    if to == "transformers":
        assert json.loads((conversion.output / "config.json").read_text())["dtype"] == dtype
        assert load_transformers(conversion.output).dtype == rounded


@pytest.mark.parametrize("to", ["npz", "h5", "bit_pytorch"])
def test_no_rounding_where_it_could_not_be_said(tmp_path, to):
    source = write_npz(tmp_path / "a.npz", ARRAYS)
    with pytest.raises(UsageError, match=r"not possible for .* files, which are always float32"):
        convert(source, target=Target(to, dtype="bfloat16"))


def test_numbers_too_large_for_float16(tmp_path):
    arrays = dict(ARRAYS)
    arrays["resnet/group_norm/gamma"] = arrays["resnet/group_norm/gamma"] * np.float32(1e6)
    source = write_npz(tmp_path / "a.npz", arrays)
    with pytest.raises(CheckpointError, match=r"too large for float16"):
        convert(source, target=Target(dtype="float16"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


# --- folders as outputs ---------------------------------------------------------------------------


def test_a_folder_is_replaced_only_if_it_is_ours(tmp_path):
    source = write_npz(tmp_path / "a.npz", ARRAYS)
    output = convert(source, target=Target("transformers")).output
    assert output == tmp_path / "a-transformers"
    with pytest.raises(UsageError, match=r"already exists.*`force=True`"):
        convert(source, target=Target("transformers"))
    convert(source, target=Target("transformers"), force=True)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"found one with notes\.txt"):
        convert(source, target=Target("transformers"), force=True)
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty", target=Target("transformers"))
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-transformers", "a.npz", "empty"]
