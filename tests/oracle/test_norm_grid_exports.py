"""Networks of the paper's ablation as exported, optimized and proven.

The judge of an export is the NumPy reference, which `test_the_references` compares with plain
operations of torch first.
"""

import json

import numpy as np
import pytest
import torch
from norm_grid import ENDINGS, TINY, distance, images_of, make, plain_forward

import bitzoo
from bitzoo.converters.parity import logits, reference_numpy
from bitzoo.converters.parity.reference_tensorflow import forward, is_installed
from bitzoo.errors import FoldedModelError, UsageError
from bitzoo.exporters import probe
from bitzoo.exporters.export import ExportReport
from bitzoo.exporters.graph import Graph
from bitzoo.exporters.names import google_tensors
from bitzoo.inference.optimize import optimize
from bitzoo.models.bit import fold
from bitzoo.models.timm_numbers import with_timm_numbers
from bitzoo.zoo.model_folder import write_model_folder

NEW = ENDINGS[1:]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "savedmodel": ""}
needs_tensorflow = pytest.mark.skipif(not is_installed(), reason="TensorFlow is not installed")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(probe, "PROBES", ((64, 2), (33, 1)))
    monkeypatch.setattr(logits, "PROBES", ((48, 1), (33, 2)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def judged_by(reference, ending, **options):
    model, images = make(TINY + ending), images_of(size=33)
    form = model.architecture
    expected = plain_forward(
        model.float().state_dict(),
        images.float(),
        norm=form.norm,
        standardized=form.weight_standardization,
    )
    eps = 1e-10 if form.weight_standardization else None
    nhwc = images.permute(0, 2, 3, 1).numpy().astype(np.float32)
    found = reference(google_tensors(model), nhwc, eps=eps, **options)
    return distance(torch.from_numpy(np.array(found)), expected)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_references_compute_every_network(ending):
    assert judged_by(reference_numpy.forward, ending) < 1e-5  # `expected` is in float32


@needs_tensorflow
@pytest.mark.parametrize("ending", NEW)
def test_so_does_tensorflow(ending):
    assert judged_by(forward, ending, dtype="float64") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("ending", NEW)
@pytest.mark.parametrize("to", SUFFIXES)
def test_exports_compute_the_network(tmp_path, to, ending):
    if to == "savedmodel" and not is_installed():
        pytest.skip("TensorFlow is not installed")
    model = make(TINY + ending, dtype=torch.float32)
    report = bitzoo.export(model, to, tmp_path / f"net{SUFFIXES[to]}")
    assert isinstance(report, ExportReport)
    assert report.passed
    assert max(found.relative_l2 for found in report.deviations) < 1e-5
    assert report.metadata["architecture"] == TINY + ending
    kernels = "not standardized" if "noWS" in ending else "standardized once"
    assert report.metadata["kernels"].startswith(kernels)
    assert ("folded into them" in report.metadata["kernels"]) == ("BN" in ending)


@pytest.mark.parametrize("ending", NEW)
@pytest.mark.parametrize(
    ("backend", "dtype", "most"),
    [
        ("eager", "float32", 1e-5),
        ("eager", "bfloat16", 0.1),
        pytest.param("onnxruntime", "float32", 1e-5, marks=pytest.mark.slow),
        pytest.param("openvino", "float32", 1e-5, marks=pytest.mark.slow),
        pytest.param("compile", "float32", 1e-5, marks=pytest.mark.slow),
        pytest.param("compile", "bfloat16", 0.1, marks=pytest.mark.slow),
    ],
)
def test_optimized_networks_compute_the_same(backend, dtype, most, ending):
    model, images = make(TINY + ending, dtype=torch.float32), images_of(dtype=torch.float32)
    run = optimize(model, backend=backend, dtype=dtype)
    with torch.no_grad():
        expected = model(images)
    assert distance(run(images), expected) < most
    assert distance(run(images[:1]), expected[:1]) < most
    folded = optimize(fold(model), backend=backend, dtype=dtype)
    assert distance(folded(images), expected) < most


def test_timms_numbers_are_optimized_and_not_exported(tmp_path):
    model = with_timm_numbers(make(TINY + "-BN-noWS", dtype=torch.float32))
    images = images_of(dtype=torch.float32)
    with torch.no_grad():
        expected = model(images)
    assert distance(expected, make(TINY + "-BN-noWS", dtype=torch.float32)(images)) > 1e-3
    assert distance(optimize(model)(images), expected) < 1e-5
    with torch.no_grad():  # what the other backends are made of
        assert distance(Graph(model)(images), expected) < 1e-5
    with pytest.raises(UsageError, match="own numbers, found one with timm's"):
        bitzoo.export(model, "onnx", tmp_path / "net.onnx")


def test_a_folded_batch_norm_has_no_tensors_for_tensorflow():
    with pytest.raises(FoldedModelError, match="become part of its kernels"):
        google_tensors(fold(make(TINY + "-BN")))


@pytest.mark.slow
@pytest.mark.parametrize("ending", NEW)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_conversions_are_proven_by_logits(tmp_path, ending, dtype):
    model = make(TINY + ending, dtype=torch.float32)
    write_model_folder(tmp_path / "run", model, bitzoo.info(model))
    out, report = tmp_path / "out.safetensors", tmp_path / "parity.json"
    bitzoo.convert(tmp_path / "run", out, dtype=dtype, check="logits", report=report)
    proof = json.loads(report.read_text())["out.safetensors"]
    assert proof["passed"]
    oracles = {one["oracle"].split()[0] for one in proof["logits"]}
    assert oracles == {"NumPy"} | ({"TensorFlow"} if is_installed() else set())
    exact = [one for one in proof["logits"] if one["dtype"] == "float64" and not one["unrounded"]]
    assert exact
    assert all(one["relative_l2"] < 1e-11 for one in exact)
