"""The NumPy reference against torch's own float64 operators and against numbers worked by hand.

The network below is written from google-research/big_transfer, bit_pytorch/models.py: other
operators (torch.nn.functional), other layouts (NCHW, OIHW) and no code of the reference's.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bitzoo.converters.parity import reference_numpy
from bitzoo.errors import LayoutError, TensorMismatchError

TOLERANCE = 1e-12
"""Relative L2. Float64 rounding measures 1e-15 to 3e-15; the planted faults, over 1e-3."""

Tensors = dict[str, np.ndarray[Any, Any]]


# --- checkpoints and images ----------------------------------------------------------------------


def make_tensors(
    depths: tuple[int, ...], width: float, *, classes: int = 10, std: float | None = None
) -> Tensors:
    """Random tensors in float32 under the released names; kernel std is He's unless given."""
    rng = np.random.default_rng(2)
    tensors: Tensors = {}

    def kernel(name: str, *shape: int) -> None:
        scale = std or math.sqrt(2 / math.prod(shape[:3]))
        values = rng.normal(0.2 * scale, scale, shape)  # a mean for standardization to remove
        tensors[name] = values.astype(np.float32)

    def norm(scope: str, channels: int) -> None:
        for name, low, high in (("gamma", 0.5, 1.5), ("beta", -0.5, 0.5)):
            values = rng.uniform(low, high, channels)
            tensors[f"{scope}/group_norm/{name}"] = values.astype(np.float32)

    inputs = stem = round(64 * width)
    kernel("resnet/root_block/standardized_conv2d/kernel", 7, 7, 3, stem)
    for block, depth in enumerate(depths):
        mid = stem * 2**block
        for unit in range(depth):
            scope = f"resnet/block{block + 1}/unit{unit + 1:02d}"
            norm(f"{scope}/a", inputs)
            if unit == 0:
                kernel(f"{scope}/a/proj/standardized_conv2d/kernel", 1, 1, inputs, 4 * mid)
            kernel(f"{scope}/a/standardized_conv2d/kernel", 1, 1, inputs, mid)
            norm(f"{scope}/b", mid)
            kernel(f"{scope}/b/standardized_conv2d/kernel", 3, 3, mid, mid)
            norm(f"{scope}/c", mid)
            kernel(f"{scope}/c/standardized_conv2d/kernel", 1, 1, mid, 4 * mid)
            inputs = 4 * mid
    norm("resnet", inputs)
    if classes:
        kernel("resnet/head/conv2d/kernel", 1, 1, inputs, classes)
        tensors["resnet/head/conv2d/bias"] = np.linspace(-1, 1, classes, dtype=np.float32)
    return tensors


def make_images(height: int, width: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).uniform(-1, 1, (2, height, width, 3))


@pytest.fixture(scope="module")
def small() -> Tensors:
    return make_tensors((2, 1, 1, 1), 0.5)


@pytest.fixture(scope="module")
def logits(small: Tensors) -> np.ndarray[Any, Any]:
    return reference_numpy.forward(small, make_images(33, 46))


# --- the independent implementation --------------------------------------------------------------


def torch_forward(
    tensors: Mapping[str, np.ndarray[Any, Any]],
    images: np.ndarray[Any, Any],
    *,
    eps: float = 1e-10,
    pool_border: float = 0.0,
) -> np.ndarray[Any, Any]:
    def get(name: str) -> torch.Tensor:
        return torch.from_numpy(tensors[f"resnet/{name}"].astype(np.float64))

    def conv(x: torch.Tensor, scope: str, stride: int = 1) -> torch.Tensor:
        weight = get(f"{scope}/standardized_conv2d/kernel").permute(3, 2, 0, 1)
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (weight - mean) / torch.sqrt(variance + eps)
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm_relu(x: torch.Tensor, scope: str) -> torch.Tensor:
        scope = f"{scope}/group_norm".lstrip("/")
        return F.relu(F.group_norm(x, 32, get(f"{scope}/gamma"), get(f"{scope}/beta"), 1e-5))

    x = conv(torch.from_numpy(images).permute(0, 3, 1, 2), "root_block", 2)
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=pool_border), 3, 2)
    units = sorted({name.rsplit("/a/", 1)[0][7:] for name in tensors if "/a/" in name})
    for unit in units:
        stride = 2 if unit.endswith("unit01") and "block1/" not in unit else 1
        h = norm_relu(x, f"{unit}/a")
        residual = conv(h, f"{unit}/a/proj", stride) if unit.endswith("unit01") else x
        h = conv(norm_relu(conv(h, f"{unit}/a"), f"{unit}/b"), f"{unit}/b", stride)
        x = conv(norm_relu(h, f"{unit}/c"), f"{unit}/c") + residual
    x = F.adaptive_avg_pool2d(norm_relu(x, ""), 1)
    if "resnet/head/conv2d/kernel" in tensors:
        weight = get("head/conv2d/kernel").permute(3, 2, 0, 1)
        x = F.conv2d(x, weight, get("head/conv2d/bias"))
    return x[:, :, 0, 0].numpy()


def difference(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# --- agreement -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depths", "width", "size"),
    [
        ((1, 1, 1, 1), 0.5, (64, 64)),
        ((1, 1, 1, 1), 0.5, (32, 33)),
        ((2, 1, 1, 1), 0.5, (64, 64)),
        ((2, 1, 1, 1), 0.5, (97, 97)),
        ((2, 1, 1, 1), 0.5, (65, 90)),
        ((1, 1, 1, 1), 1, (97, 97)),
        ((1, 11, 1, 2), 0.5, (32, 32)),
    ],
)
def test_logits_equal_torch_float64(
    depths: tuple[int, ...], width: float, size: tuple[int, int]
) -> None:
    tensors, images = make_tensors(depths, width), make_images(*size)
    found, expected = reference_numpy.forward(tensors, images), torch_forward(tensors, images)
    assert difference(found, expected) < TOLERANCE


def test_a_file_without_head_gives_pooled_features() -> None:
    tensors, images = make_tensors((1, 1, 1, 1), 0.5, classes=0), make_images(64, 64)
    features = reference_numpy.forward(tensors, images)
    assert features.shape == (2, 1024)
    assert difference(features, torch_forward(tensors, images)) < TOLERANCE


def test_a_dense_head_kernel_gives_the_same_bits(
    small: Tensors, logits: np.ndarray[Any, Any]
) -> None:
    kernel = small["resnet/head/conv2d/kernel"]
    dense = small | {"resnet/head/conv2d/kernel": kernel[0, 0]}
    assert np.array_equal(reference_numpy.forward(dense, make_images(33, 46)), logits)


def test_inputs_stay_as_they_were_even_in_float64(
    small: Tensors, logits: np.ndarray[Any, Any]
) -> None:
    tensors = {name: tensor.astype(np.float64) for name, tensor in small.items()}
    images = make_images(33, 46)
    assert np.array_equal(reference_numpy.forward(tensors, images), logits)
    assert all(np.array_equal(tensors[name], small[name]) for name in small)
    assert np.array_equal(images, make_images(33, 46))


# --- planted deviations show ---------------------------------------------------------------------


def test_eps_counts_where_kernels_are_small() -> None:
    tensors = make_tensors((2, 1, 1, 1), 0.5, classes=0, std=1e-3)
    images = make_images(64, 64)
    released = reference_numpy.forward(tensors, images)
    peers = reference_numpy.forward(tensors, images, eps=1e-8)
    assert difference(released, torch_forward(tensors, images, eps=1e-10)) < TOLERANCE
    assert difference(peers, torch_forward(tensors, images, eps=1e-8)) < TOLERANCE
    assert difference(peers, released) > 1e-3


def test_the_pool_sees_zeros_and_not_minus_infinity(
    small: Tensors, logits: np.ndarray[Any, Any]
) -> None:
    padded = torch_forward(small, make_images(33, 46), pool_border=-math.inf)
    assert difference(padded, logits) > 1e-3


def test_two_kernels_of_one_shape_swapped(small: Tensors, logits: np.ndarray[Any, Any]) -> None:
    first, second = (f"resnet/block1/unit{u}/b/standardized_conv2d/kernel" for u in ("01", "02"))
    swapped = small | {first: small[second], second: small[first]}
    assert difference(reference_numpy.forward(swapped, make_images(33, 46)), logits) > 1e-2


def test_a_square_kernel_with_inputs_and_outputs_swapped(
    small: Tensors, logits: np.ndarray[Any, Any]
) -> None:
    name = "resnet/block1/unit01/a/standardized_conv2d/kernel"
    turned = small | {name: small[name].swapaxes(2, 3)}
    assert difference(reference_numpy.forward(turned, make_images(33, 46)), logits) > 1e-2


# --- numbers worked out by hand ------------------------------------------------------------------


def test_standardize_by_hand() -> None:
    # Filter 0 holds 1 and 3: mean 2, biased variance 1. Filter 1 is constant: variance 0.
    kernel = np.array([[1.0, 5.0], [3.0, 5.0]]).reshape(2, 1, 1, 2)
    found = reference_numpy.standardize(kernel.copy(), eps=3.0)  # divides by sqrt(1 + 3) = 2
    assert found.reshape(2, 2).tolist() == [[-0.5, 0.0], [0.5, 0.0]]
    found = reference_numpy.standardize(kernel.copy(), eps=0.5625)  # by sqrt(1.5625) = 1.25
    assert found.reshape(2, 2).tolist() == [[-0.8, 0.0], [0.8, 0.0]]


def test_group_norm_by_hand() -> None:
    # 64 channels make groups of two neighbours. Group 0 holds 1, 3 (channel 0) and 5, 7
    # (channel 1): mean 4, biased variance (9 + 1 + 1 + 9) / 4 = 5. The others are constant.
    x = np.full((2, 1, 2, 64), 100.0)
    x[0, 0, :, 0], x[0, 0, :, 1] = (1, 3), (5, 7)
    gamma, beta = np.ones(64), np.zeros(64)
    gamma[0], beta[1], beta[2] = 2, 10, -6
    found = reference_numpy.group_norm(x, gamma, beta)
    deviation = math.sqrt(5 + 1e-5)
    np.testing.assert_allclose(found[0, 0, :, 0], [-6 / deviation, -2 / deviation], rtol=1e-15)
    np.testing.assert_allclose(found[0, 0, :, 1], [10 + 1 / deviation, 10 + 3 / deviation])
    assert found[0, 0, :, 2].tolist() == [-6, -6]
    assert not found[0, :, :, 3:].any()
    assert found[1, 0, 0, :4].tolist() == [0, 10, -6, 0]  # each image by itself


def test_max_pool_by_hand() -> None:
    x = np.array([[5, -2, -3, 1], [-4, -9, -9, -5], [-7, -9, -1, -8], [-6, -9, -9, -3.0]])
    # Rows and columns -1..1 and 1..3: only the last window lies wholly inside the image.
    found = reference_numpy.max_pool(x[None, :, :, None])
    assert found[0, :, :, 0].tolist() == [[5, 1], [0, -1]]
    # Five columns make three windows, the last of which ends in the padding.
    assert reference_numpy.max_pool(np.full((1, 4, 5, 1), -2.0))[0, :, :, 0].tolist() == [
        [0, 0, 0],
        [0, -2, 0],
    ]


def test_convolve_by_hand() -> None:
    x = np.arange(1.0, 26).reshape(1, 5, 5, 1)
    kernel = np.zeros((3, 3, 1, 2))
    kernel[0, 2, 0, 0] = 1  # output 0: the pixel above and to the right
    kernel[1, 1, 0, 1], kernel[2, 1, 0, 1] = 10, 1  # output 1: ten times this one and the one below
    found = reference_numpy.convolve(x, iter([kernel]), size=3, stride=2)
    assert found[0, :, :, 0].tolist() == [[0, 0, 0], [7, 9, 0], [17, 19, 0]]
    assert found[0, :, :, 1].tolist() == [[16, 38, 60], [126, 148, 170], [210, 230, 250]]


# --- reading -------------------------------------------------------------------------------------


class Recorder(Mapping[str, Any]):
    """A lazy mapping that records what is asked of it."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        self.asked.append(name)
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class ColumnRecorder(Recorder):
    """One that also offers slices of the last axis."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__(tensors)
        self.most_bytes = 0

    def read_columns(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        columns = self.tensors[name][..., start:stop]
        self.most_bytes = max(self.most_bytes, columns.astype(np.float64).nbytes)
        return columns


def test_each_tensor_is_read_once_in_order(small: Tensors) -> None:
    recorder = Recorder(small)
    reference_numpy.forward(recorder, make_images(32, 32))
    assert recorder.asked == list(small)  # make_tensors writes them in the order of the layers


# 9 * 256 * 8 bytes is one column of block 4's 3x3 kernel of 256: blocks of 3 columns leave a
# last one of 1, blocks of 4 divide it evenly.
@pytest.mark.parametrize("block_bytes", [3 * 9 * 256 * 8, 4 * 9 * 256 * 8])
@pytest.mark.parametrize("mapping", [dict, ColumnRecorder])
def test_blocks_of_columns_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
    small: Tensors,
    logits: np.ndarray[Any, Any],
    mapping: Any,
    block_bytes: int,
) -> None:
    monkeypatch.setattr(reference_numpy, "BLOCK_BYTES", block_bytes)
    found = reference_numpy.forward(mapping(small), make_images(33, 46))
    assert difference(found, logits) < 1e-14


def test_kernels_are_read_by_columns_within_the_bound(
    monkeypatch: pytest.MonkeyPatch, small: Tensors
) -> None:
    monkeypatch.setattr(reference_numpy, "BLOCK_BYTES", 100_000)
    recorder = ColumnRecorder(small)
    reference_numpy.forward(recorder, make_images(32, 32))
    assert recorder.asked == [name for name in small if small[name].ndim == 1]
    assert 90_000 < recorder.most_bytes <= 100_000


def test_a_wide_head_is_never_whole_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, images = make_tensors((1, 1, 1, 1), 0.5, classes=12_000), make_images(32, 32)
    head_bytes = 8 * tensors["resnet/head/conv2d/kernel"].size
    monkeypatch.setattr(reference_numpy, "BLOCK_BYTES", 2 << 20)
    tracemalloc.start()
    try:
        reference_numpy.forward(tensors, images)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert head_bytes > 90 << 20
    assert peak < 12 << 20


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "resnet/root_block/standardized_conv2d/kernel",
        "resnet/block1/unit01/a/proj/standardized_conv2d/kernel",
        "resnet/block3/unit01/c/group_norm/beta",
        "resnet/head/conv2d/bias",
    ],
)
@pytest.mark.parametrize("mapping", [dict, ColumnRecorder])
def test_a_missing_tensor_is_named(small: Tensors, name: str, mapping: Any) -> None:
    tensors = {key: tensor for key, tensor in small.items() if key != name}
    with pytest.raises(TensorMismatchError, match=rf"lacks a tensor .*\n- {name}\n"):
        reference_numpy.forward(mapping(tensors), make_images(32, 32))


def test_a_gap_in_the_units_and_an_empty_block_are_refused(small: Tensors) -> None:
    gap = {name.replace("block1/unit02", "block1/unit03"): t for name, t in small.items()}
    with pytest.raises(TensorMismatchError, match="- resnet/block1/unit02/a/group_norm/gamma"):
        reference_numpy.forward(gap, make_images(32, 32))
    empty = {name: t for name, t in small.items() if "block3" not in name}
    with pytest.raises(TensorMismatchError, match="- resnet/block3/unit01/a/group_norm/gamma"):
        reference_numpy.forward(empty, make_images(32, 32))


def test_a_tensor_that_no_layer_reads_is_refused(small: Tensors) -> None:
    extra = small | {"resnet/block1/unit02/a/proj/standardized_conv2d/kernel": np.zeros(1)}
    extra["global_step"] = np.zeros(1)
    with pytest.raises(
        TensorMismatchError, match=r"2 tensor\(s\) .*\n\+ global_step\n\+ resnet/block1/unit02/a/p"
    ):
        reference_numpy.forward(extra, make_images(32, 32))


@pytest.mark.parametrize(
    ("name", "axes", "message"),
    [
        (
            "resnet/block1/unit01/b/standardized_conv2d/kernel",
            (3, 2, 0, 1),
            r"must have the shape \(3, 3, 32, any\), found \(32, 32, 3, any\)",
        ),
        (
            "resnet/head/conv2d/kernel",
            (3, 2, 0, 1),
            r"must have the shape \(1, 1, 1024, any\) or \(1024, any\), found \(10, 1024, 1, any\)",
        ),
    ],
)
def test_a_kernel_in_another_layout_is_refused(
    small: Tensors, name: str, axes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(TensorMismatchError, match=f"{name} {message}"):
        reference_numpy.forward(small | {name: small[name].transpose(axes)}, make_images(32, 32))


def test_a_short_vector_is_refused(small: Tensors) -> None:
    name = "resnet/block2/unit01/b/group_norm/gamma"
    with pytest.raises(TensorMismatchError, match=rf"{name} must .* \(64\), found \(1\)"):
        reference_numpy.forward(small | {name: small[name][:1]}, make_images(32, 32))


def test_a_single_image_without_batch_axis_is_refused(small: Tensors) -> None:
    with pytest.raises(LayoutError, match=r"\(batch, height, width, channels\), found \(32, 32, 3"):
        reference_numpy.forward(small, make_images(32, 32)[0])
