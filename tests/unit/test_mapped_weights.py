"""A network and the file that it is mapped from: the ways of saving in docs/how-to/saving.md."""

import io
import os
import shutil
import subprocess
import sys

import pytest
import torch
from checkpoints import as_timm, make_checkpoint
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_model

import bitzoo


@pytest.fixture
def path(tmp_path):
    arrays = {name: array.copy() for name, array in as_timm(make_checkpoint()).items()}
    save_arrays(arrays, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def by_name_and_replace(model, path):
    other = path.with_suffix(".new")
    torch.save(model.state_dict(), other)
    os.replace(other, path)


def load_any(path):
    return torch.load(io.BytesIO(path.read_bytes()))  # by its name, it would be safetensors


@pytest.mark.parametrize(
    ("save", "load"),
    [(save_model, load_file), (by_name_and_replace, load_any)],
    ids=["save_model", "os.replace"],
)
def test_saving_over_its_own_file(path, save, load):
    """With another head, so that every tensor moves in the file."""
    model = bitzoo.create_model(path, pretrained=True, num_classes=3)
    with torch.no_grad():
        model.get_parameter("stem.conv.weight").mul_(2)
    expected = state_of(model)
    save(model, path)
    assert_equal(model.state_dict(), expected)
    assert_equal(load(path), expected)


@pytest.mark.parametrize("how", ["truncate(0)", "write(bytes(10_000_000))"])
@pytest.mark.parametrize("features_only", [False, True])
def test_in_memory_another_process_does_not_matter(path, how, features_only):
    options = {"pretrained": True, "features_only": features_only}
    model = bitzoo.create_model(path, **options, mmap=False)
    expected = state_of(model)
    code = f"import sys; open(sys.argv[1], 'r+b').{how}"
    subprocess.run([sys.executable, "-c", code, path], check=True)
    assert_equal(model.state_dict(), expected)


def test_by_default_it_is_mapped(path):
    """Which is what the ways above are for: in place, the numbers change under the network."""
    model = bitzoo.create_model(path, pretrained=True)
    before = state_of(model)["head.fc.bias"]
    shutil.copy(path, path.with_suffix(".new"))
    with path.open("r+b") as file:
        file.seek(-path.stat().st_size // 2, os.SEEK_END)
        file.write(bytes(path.stat().st_size // 2))
    assert not model.get_parameter("stages.3.blocks.0.conv3.weight").count_nonzero()
    again = bitzoo.create_model(path.with_suffix(".new"), pretrained=True, mmap=False)
    assert torch.equal(again.get_parameter("head.fc.bias"), before)
