"""Optimized models against the float64 oracle, whatever runs them."""

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from oracle.networks import run
from torch._dynamo.utils import counters

import bitzoo
from bitzoo.errors import LayoutError, UsageError
from bitzoo.inference import deviation, optimize
from bitzoo.inference.cpu_layers import (
    PackedConv2d,
    SumsGroupNormReLU,
    WideningGroupNormReLU,
    can_pack,
)
from bitzoo.inference.optimize import COMPUTE_DTYPES
from bitzoo.models.layers import GroupNormReLU

pytestmark = pytest.mark.slow


CONVOLUTIONS = 1 + 4 * 4  # the stem, and of each of four units three and a projection


@pytest.fixture(scope="module")
def weights():
    return make_checkpoint(num_classes=7)


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory):
    path = write_npz(tmp_path_factory.mktemp("model") / "a.npz", weights)
    return bitzoo.create_model(path, pretrained=True)


def images(count, height, width):
    return torch.from_numpy(
        np.random.default_rng(height).uniform(-1, 1, (count, 3, height, width)).astype(np.float32)
    )


def packed_by_the_compiler():
    found = counters["inductor"]
    return sum(found[f"mkldnn_{kind}_weight_pack_matcher_count"] for kind in ("conv", "linear"))


def error(found, expected):
    assert found.dtype == torch.float32
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("backend", "dtype", "least", "most"),
    [
        ("eager", "float32", 0, 1e-5),
        pytest.param("compile", "float32", 0, 1e-5, marks=pytest.mark.full_size),
        pytest.param("compile", "bfloat16", 1e-4, 0.03, marks=pytest.mark.full_size),
        ("onnxruntime", "float32", 0, 1e-4),
        ("openvino", "float32", 0, 1e-4),
        ("eager", "bfloat16", 1e-4, 0.03),  # bfloat16 has 8 bits: 0.4 % a rounding
        ("openvino", "bfloat16", 0, 0.03),  # where the processor lacks it, it is float32
        ("eager", "float16", 1e-5, 0.005),
    ],
)
def test_computes_googles_function(model, weights, backend, dtype, least, most):
    optimized = optimize(model, backend=backend, dtype=dtype)
    packed = packed_by_the_compiler()
    for count, height, width in ((2, 64, 64), (1, 64, 64), (2, 49, 77)):
        x = images(count, height, width)
        assert least <= error(optimized(x), run(weights, x).logits) <= most
        if (backend, count) == ("compile", 1):  # filled up; another size would be compiled anew
            break
    if backend == "compile" and can_pack(COMPUTE_DTYPES[dtype]):
        assert packed_by_the_compiler() - packed == CONVOLUTIONS


def test_packed_kernels_are_used_and_serve_any_size(model, weights):
    optimized = optimize(model)
    if not can_pack(torch.float32):
        return
    network = optimized._run.__closure__
    packed = [
        module
        for cell in network
        if isinstance(cell.cell_contents, torch.nn.Module)
        for module in cell.cell_contents.modules()
        if isinstance(module, PackedConv2d)
    ]
    assert len(packed) == CONVOLUTIONS
    for count, side in ((1, 33), (4, 33), (1, 64), (1, 33)):
        x = images(count, side, side + 8)
        assert error(optimized(x), run(weights, x).logits) < 1e-5
        assert {module._packed[0][0] for module in packed} == {count}


@pytest.mark.parametrize("layer", [WideningGroupNormReLU, SumsGroupNormReLU])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("channels", [32, 96])
@pytest.mark.parametrize("side", [31, 32])
def test_faster_normalization(layer, dtype, channels, side):
    """Small maps and large ones of narrow groups; rounded to `dtype` only once."""
    plain = GroupNormReLU(channels)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        plain.weight.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, channels)))
        plain.bias.copy_(torch.from_numpy(rng.uniform(-1, 1, channels)))
    x = torch.from_numpy(rng.normal(0.7, 1, (2, channels, side, side + 1))).to(
        COMPUTE_DTYPES[dtype]
    )
    x = x.contiguous(memory_format=torch.channels_last)
    groups = x.double().reshape(2, 32, -1)
    centred = groups - groups.mean(2, keepdim=True)
    normal = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
    scale, shift = (p.detach().double().view(1, -1, 1, 1) for p in (plain.weight, plain.bias))
    expected = (normal.reshape(x.shape) * scale + shift).clamp(min=0)
    with torch.no_grad():
        found = layer(plain)(x)
    assert found.dtype == x.dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    bits = {"float32": 24, "bfloat16": 8, "float16": 11}[dtype]
    assert ((found.double() - expected).abs() <= expected * 2.0**-bits + 4e-6).all()


def test_the_model_stays_as_it_is(model):
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    for backend, dtype in (("eager", "bfloat16"), ("eager", "float32")):
        optimize(model, backend=backend, dtype=dtype)(images(1, 40, 40))
        optimize(bitzoo.fold(model), backend=backend, dtype=dtype)(images(1, 40, 40))
    assert not model.folded
    for name, parameter in model.named_parameters():
        pointer, value = before[name]
        assert parameter.data_ptr() == pointer
        assert torch.equal(parameter, value)


def test_later_training_does_not_show(weights, tmp_path):
    model = bitzoo.create_model(write_npz(tmp_path / "a.npz", weights), pretrained=True)
    optimized, x = optimize(model), images(1, 40, 40)
    before = optimized(x)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.mul_(-2)
    assert torch.equal(optimized(x), before)


def test_encoders_give_features(weights, tmp_path):
    path = write_npz(tmp_path / "a.npz", weights)
    encoder = bitzoo.create_model(path, pretrained=True, num_classes=0)
    x = images(2, 40, 40)
    assert error(optimize(encoder)(x), run(weights, x).pooled) < 1e-5


def test_deviation_is_the_relative_distance(model):
    optimized = optimize(model, dtype="bfloat16")
    shape = (4, 224, 224, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    x = torch.from_numpy(noise).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = model(x)
    assert deviation(optimized, model) == pytest.approx(
        error(optimized(x), expected.double()), rel=1e-3
    )
    assert deviation(optimize(model), model) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "one of eager, compile, onnxruntime, openvino, found 'tensorrt'"),
        ({"backend": "onnxruntime", "dtype": "bfloat16"}, "computes in float32, found bfloat16"),
        ({"backend": "openvino", "device": "meta"}, "runs on cpu, found meta"),
        ({"dtype": "int8"}, "computes in float32 or bfloat16 or float16, found int8"),
    ],
)
def test_what_cannot_be_is_said(model, options, message):
    with pytest.raises(UsageError, match=message):
        optimize(model, **options)


def test_features_only_models_are_refused(weights, tmp_path):
    path = write_npz(tmp_path / "a.npz", weights)
    with pytest.raises(UsageError, match="found FeatureExtractor"):
        optimize(bitzoo.create_model(path, pretrained=True, features_only=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 40, 40), (1, 4, 40, 40)])
def test_images_of_another_shape_are_refused(model, shape):
    with pytest.raises(LayoutError, match=r"3 channels, .* found shape"):
        optimize(model)(torch.zeros(shape))
