"""The second oracle: TensorFlow's forward pass, its own checks, and parity reports that use it."""

import importlib
import sys

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from oracle.networks import run

from bitzoo.converters.parity import logits
from bitzoo.converters.parity.reference_tensorflow import forward, load_tensorflow
from bitzoo.converters.parity.tensorflow_process import TensorFlowProcess
from bitzoo.converters.parity.verify import convert_and_prove
from bitzoo.errors import MissingExtraError, ParityError
from bitzoo.exporters.names import google_tensors
from bitzoo.models.bit import fold
from bitzoo.zoo.create import create_model

DEEPER = (2, 1, 1, 1)


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    monkeypatch.setattr(logits, "PROBES", ((48, 1), (33, 2)))


def images(height, width):
    return np.random.default_rng(height).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)


def distance(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("kernel_std", ["he", 0.001])
@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_it_computes_what_another_implementation_does(size, kernel_std, dtype, most):
    arrays = make_checkpoint(DEEPER, kernel_std=kernel_std)
    x = images(*size)
    found = forward(arrays, x, dtype=dtype).numpy()
    assert found.dtype == dtype
    assert distance(found, run(arrays, x.transpose(0, 3, 1, 2)).logits) < most


def test_eps_and_the_pools_border_show_in_it():
    arrays = make_checkpoint(kernel_std=0.001)
    x = images(64, 64)
    wrong = run(arrays, x.transpose(0, 3, 1, 2), eps=1e-8).logits
    assert distance(forward(arrays, x, dtype="float64", eps=1e-8), wrong) < 1e-12
    assert distance(forward(arrays, x, dtype="float64"), wrong) > 1e-4
    padded = run(arrays, x.transpose(0, 3, 1, 2), root_padding=float("-inf")).logits
    assert distance(forward(arrays, x, dtype="float64"), padded) > 1e-4


def test_without_a_head_and_with_a_dense_one():
    arrays = make_checkpoint()
    x = images(48, 48)
    expected = run(arrays, x.transpose(0, 3, 1, 2))
    dense = arrays | {"resnet/head/conv2d/kernel": arrays["resnet/head/conv2d/kernel"][0, 0]}
    assert distance(forward(dense, x, dtype="float64"), expected.logits) < 1e-12
    headless = {name: array for name, array in arrays.items() if "/head/" not in name}
    assert distance(forward(headless, x, dtype="float64"), expected.pooled) < 1e-12


def test_kernels_that_are_standardized_already(tmp_path):
    arrays = make_checkpoint()
    folded = fold(create_model(write_npz(tmp_path / "a.npz", arrays), True))
    x = images(48, 48)
    expected = run(arrays, x.transpose(0, 3, 1, 2)).logits
    assert distance(forward(google_tensors(folded), x, eps=None), expected) < 1e-5


def test_parity_names_each_oracle_with_its_version_and_figures(tmp_path):
    source = write_npz(tmp_path / "a.npz", make_checkpoint())
    _, report = convert_and_prove(source, tmp_path / "a.safetensors")
    whose = "on the source's own names"
    reference = f"NumPy {np.__version__} float64 reference {whose}"
    second = f"TensorFlow {load_tensorflow().__version__} forward pass {whose}"
    assert [(p.oracle, p.dtype, p.size, p.images) for p in report.logits] == [
        (oracle, dtype, size, count)
        for size, count in ((48, 1), (33, 2))
        for dtype in ("float64", "float32")
        for oracle in (reference, second)
    ]
    for proof in report.logits:
        assert 0 < proof.relative_l2 < (1e-12 if proof.dtype == "float64" else 1e-5)
        assert proof.top1_equal == proof.images
    assert [entry["oracle"] for entry in report.to_dict()["logits"][:2]] == [reference, second]


def test_parity_fails_where_tensorflow_disagrees(tmp_path, monkeypatch):
    """An error that both the network and the NumPy reference had, TensorFlow would show."""
    right = TensorFlowProcess.forward

    def wrong(process, tensors, images, **options):
        return right(process, tensors, images, **{**options, "eps": 1e-8})

    monkeypatch.setattr(TensorFlowProcess, "forward", wrong)
    source = write_npz(tmp_path / "a.npz", make_checkpoint(kernel_std=0.001))
    with pytest.raises(ParityError, match=r"float64 logits at 48 px .* away from TensorFlow"):
        convert_and_prove(source, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_a_missing_tensorflow(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(importlib, "import_module", raising_import)
    with pytest.raises(MissingExtraError, match=r"pip install 'bitzoo\[tf\]'"):
        load_tensorflow()


def raising_import(name):
    raise ImportError(f"No module named {name!r}")


def test_torch_traces_after_tensorflow_was_loaded():
    """Their two LLVMs end the process unless Triton's comes first."""
    load_tensorflow()
    program = torch.export.export(torch.nn.ReLU(), (torch.tensor([-1.0, 2.0]),))
    assert program.module()(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]
