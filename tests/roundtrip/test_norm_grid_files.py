"""Networks of the paper's ablation as files: written, read, refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from norm_grid import CLASSES, ENDINGS, TINY, images_of, make, random_state
from safetensors.torch import load_file, save_file

import bitzoo
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.zoo.info import describe
from bitzoo.zoo.model_folder import write_model_folder

FLOAT = torch.float32


def write_folder(path, ending, **options):
    model = make(TINY + ending, dtype=FLOAT, **options)
    write_model_folder(path, model, bitzoo.info(model))
    return model


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_model_folder_gives_the_same_network_back(tmp_path, ending):
    model = write_folder(tmp_path, ending)
    loaded = bitzoo.create_model(tmp_path, pretrained=True)
    assert loaded.architecture == model.architecture
    assert loaded.info.architecture == TINY + ending
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(loaded(images_of(dtype=FLOAT)), model(images_of(dtype=FLOAT)))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == TINY + ending
    described = describe(str(tmp_path))
    assert described["architecture"] == TINY + ending
    assert described["num_params"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("ending", ENDINGS[1:])
def test_published_sizes_do_not_claim_timms_names(tmp_path, ending):
    with torch.device("meta"):
        model = BiT(Architecture.parse("R50x1" + ending), CLASSES)
    model = model.to_empty(device="cpu")
    write_model_folder(tmp_path, model, bitzoo.info(model))
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "R50x1" + ending


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_conversion_to_safetensors_keeps_the_form(tmp_path, ending, dtype):
    model = write_folder(tmp_path / "run", ending)
    out = tmp_path / "converted.safetensors"
    bitzoo.convert(tmp_path / "run", out, dtype=dtype, check="weights", report=None)
    loaded = bitzoo.create_model(out, pretrained=True)
    assert loaded.architecture == model.architecture
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(getattr(torch, dtype)).float())


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        ("-BN", "has no place for running statistics of batch normalization: the file"),
        ("-noWS", "is for readers that standardize every kernel: the file"),
        ("-BN-noWS", "statistics of batch normalization and is for readers that standardize"),
    ],
)
@pytest.mark.parametrize("to", ["npz", "h5", "timm", "transformers", "bit_pytorch"])
def test_formats_of_the_release_refuse_other_networks(tmp_path, ending, why, to):
    write_folder(tmp_path / "run", ending)
    with pytest.raises(UsageError, match=why):
        bitzoo.convert(tmp_path / "run", tmp_path / "out", to=to, check="weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_batch_norm_without_a_word_on_the_kernels_is_refused(tmp_path):
    state = random_state(Architecture.parse(TINY + "-BN"), dtype=FLOAT)
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    with pytest.raises(CheckpointError, match="nothing says whether the network standardizes"):
        bitzoo.create_model(file, pretrained=True)
    for name, standardized in ((TINY + "-BN-noWS", False), (TINY + "-BN", True)):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
        model = bitzoo.create_model(file, pretrained=True)
        assert model.architecture.weight_standardization is standardized
        assert model.architecture.norm == "batch"
    # A statement about another normalization says nothing about this network.
    (tmp_path / "config.json").write_text(json.dumps({"architecture": TINY + "-noWS"}))
    with pytest.raises(CheckpointError, match=r"found 'R\(1,2,1,1\)x0.5-noWS'"):
        bitzoo.create_model(file, pretrained=True)


def test_timms_own_networks_are_told_apart(tmp_path):
    timm = pytest.importorskip("timm")
    peer = timm.create_model("resnetv2_50", num_classes=3)
    save_file(peer.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnetv2_50"}))
    with pytest.raises(CheckpointError, match="eps 1e-5 instead of 1e-3"):
        bitzoo.create_model(tmp_path, pretrained=True)


def test_timms_counters_are_skipped(tmp_path):
    write_folder(tmp_path, "-BN-noWS")
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    counters = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(7)
        for name in state
        if name.endswith("running_var")
    }
    save_file(state | counters, file)  # config.json still names the network
    loaded = bitzoo.create_model(tmp_path, pretrained=True)
    assert loaded.architecture.name == TINY + "-BN-noWS"
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in state.items())


def test_missing_statistics_are_listed(tmp_path):
    write_folder(tmp_path, "-BN")
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["stages.1.blocks.1.norm2.running_var"]
    save_file(state, file)
    with pytest.raises(
        CheckpointError, match=r"- stages\.1\.blocks\.1\.norm2\.running_var \(64,\)"
    ):
        bitzoo.create_model(tmp_path, pretrained=True)


def test_group_norm_that_says_nothing_is_what_was_released(tmp_path):
    """As before: the only networks without a word on their kernels are BiT's."""
    write_folder(tmp_path / "run", "-noWS")
    state = load_file(tmp_path / "run" / "model.safetensors")
    save_file(state, tmp_path / "silent.safetensors")
    assert (
        bitzoo.create_model(tmp_path / "silent.safetensors", pretrained=True).architecture.name
        == TINY
    )
    shutil.copy(tmp_path / "run" / "model.safetensors", tmp_path / "speaking.safetensors")
    assert bitzoo.create_model(
        tmp_path / "speaking.safetensors", pretrained=True
    ).architecture.name == (TINY + "-noWS")


def test_numbers_of_statistics_are_checked(tmp_path):
    write_folder(tmp_path / "run", "-BN")
    file = tmp_path / "run" / "model.safetensors"
    state = load_file(file)
    state["norm.running_var"][3] = np.inf
    save_file(state, file, {"architecture": TINY + "-BN"})
    with pytest.raises(CheckpointError, match=r"'norm\.running_var' holds NaN or infinite"):
        bitzoo.convert(file, tmp_path / "out.safetensors", check="weights")
