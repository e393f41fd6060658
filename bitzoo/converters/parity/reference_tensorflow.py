"""The second oracle: BiT's forward pass in TensorFlow, straight from the released names.

It judges what `bitzoo.converters.parity.reference_numpy` judges and shares no code with it: it
spells the npz names itself, keeps TensorFlow's layouts (images NHWC, kernels HWIO), and leaves
convolution, pooling and moments to the library that the released networks were trained with.

Source of every formula: google-research/big_transfer, bit_tf2/models.py and
bit_tf2/normalization.py; arXiv 1912.11370. Batch normalization, which only its ablation has: the
defaults of TensorFlow's `BatchNormalization`, under the names of its tensors.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from bitzoo.errors import MissingExtraError

TfTensor: TypeAlias = Any

STRIDES = (1, 2, 2, 2)
"""Stride of each block's first unit."""
GROUPS = 32
GROUP_NORM_EPS = 1e-5
BATCH_NORM_EPS = 1e-3
KERNEL_EPS = 1e-10


def is_installed() -> bool:
    """Whether TensorFlow is there, without importing it."""
    return importlib.util.find_spec("tensorflow") is not None


def load_tensorflow() -> Any:
    """Import TensorFlow without its start-up messages.

    Where nobody has imported it before, it is kept off the GPUs, whose memory it would claim.

    Raises:
        MissingExtraError: If it is not installed.
    """
    if loaded := sys.modules.get("tensorflow"):
        return loaded
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with _silent_stderr():
            if importlib.util.find_spec("triton"):
                # Both bring an LLVM. Triton loaded second, as torch.export would do, ends the
                # process: "Option 'bitcode-mdindex-threshold' registered more than once".
                importlib.import_module("triton")
            tf = importlib.import_module("tensorflow")
            tf.config.set_visible_devices([], "GPU")
            tf.config.list_logical_devices()
    except ImportError as error:
        raise MissingExtraError(
            f"This needs TensorFlow, which is not installed or cannot be loaded ({error}). "
            "Install it: pip install 'bitzoo[tf]'."
        ) from error
    return tf


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what C++ code writes to the process's stderr: its log starts before levels apply."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def forward(
    tensors: Mapping[str, Any],
    images: Any,
    *,
    dtype: str = "float32",
    eps: float | None = KERNEL_EPS,
) -> TfTensor:
    """Compute the logits of a BiT checkpoint with TensorFlow.

    Each tensor is looked up once, when its layer is reached.

    Args:
        tensors: npz name to tensor: arrays, or TensorFlow's tensors or variables. The head kernel
            may also be 2-D, as Keras has it.
        images: RGB in [-1, 1], shape (batch, height, width, channels); an array or a tensor.
        dtype: ``float32`` or ``float64``: what everything is computed in.
        eps: Added to the variance of each kernel; None for kernels that are used as they are, as
            they are not to be standardized, or are already.

    Returns:
        Logits, shape (batch, classes), or pooled features where there is no head.

    Raises:
        KeyError: If a tensor is missing.
        MissingExtraError: If TensorFlow is not installed.
    """
    net = _Network(load_tensorflow(), tensors, dtype, eps)
    x = net.conv(net.cast(images), "resnet/root_block", stride=2)
    x = net.max_pool(x)
    for block, stride in enumerate(STRIDES, start=1):
        for unit in itertools.count(1):
            scope = f"resnet/block{block}/unit{unit:02d}"
            if f"{scope}/a/standardized_conv2d/kernel" not in net.names:
                break
            x = _unit(net, x, scope, stride if unit == 1 else 1)
    x = net.tf.reduce_mean(net.norm_relu(x, "resnet"), axis=[1, 2])
    if "resnet/head/conv2d/kernel" not in net.names:
        return x
    kernel = net.read("resnet/head/conv2d/kernel")
    kernel = net.tf.reshape(kernel, [-1, kernel.shape[-1]])
    return net.tf.linalg.matmul(x, kernel) + net.read("resnet/head/conv2d/bias")


def standardize(tf: Any, kernel_hwio: TfTensor, eps: float = KERNEL_EPS) -> TfTensor:
    """Give each output filter zero mean and unit (biased) variance; eps goes to the variance."""
    mean, variance = tf.nn.moments(kernel_hwio, axes=[0, 1, 2], keepdims=True)
    return (kernel_hwio - mean) / tf.sqrt(variance + tf.constant(eps, variance.dtype))


def _unit(net: _Network, x: TfTensor, scope: str, stride: int) -> TfTensor:
    """A pre-activation bottleneck; only the projection starts from the activation."""
    h = net.norm_relu(x, f"{scope}/a")
    projected = f"{scope}/a/proj/standardized_conv2d/kernel" in net.names
    shortcut = net.conv(h, f"{scope}/a/proj", stride) if projected else x
    h = net.conv(h, f"{scope}/a")
    h = net.conv(net.norm_relu(h, f"{scope}/b"), f"{scope}/b", stride)
    h = net.conv(net.norm_relu(h, f"{scope}/c"), f"{scope}/c")
    return h + shortcut


class _Network:
    """The layers, each finding its own tensors by name."""

    def __init__(self, tf: Any, tensors: Mapping[str, Any], dtype: str, eps: float | None) -> None:
        self.tf, self.names = tf, frozenset(tensors)
        self._tensors, self._dtype, self._eps = tensors, dtype, eps

    def cast(self, array: Any) -> TfTensor:
        return self.tf.cast(array, self._dtype)

    def read(self, name: str) -> TfTensor:
        return self.cast(self._tensors[name])

    def conv(self, x: TfTensor, scope: str, stride: int = 1) -> TfTensor:
        kernel = self.read(f"{scope}/standardized_conv2d/kernel")
        if self._eps is not None:
            kernel = standardize(self.tf, kernel, self._eps)
        # Explicit zeros: padding "SAME" would put them elsewhere at even sizes and stride 2.
        return self.tf.nn.conv2d(self._pad(x, kernel.shape[0] // 2), kernel, stride, "VALID")

    def max_pool(self, x: TfTensor) -> TfTensor:
        return self.tf.nn.max_pool2d(self._pad(x, 1), 3, 2, "VALID")

    def norm_relu(self, x: TfTensor, scope: str) -> TfTensor:
        tf, shape, channels = self.tf, self.tf.shape(x), x.shape[-1]
        if f"{scope}/batch_normalization/gamma" in self.names:
            names = ("moving_mean", "moving_variance", "beta", "gamma")
            vectors = [self.read(f"{scope}/batch_normalization/{name}") for name in names]
            return tf.nn.relu(tf.nn.batch_normalization(x, *vectors, BATCH_NORM_EPS))
        groups = tf.reshape(x, [shape[0], shape[1], shape[2], GROUPS, channels // GROUPS])
        mean, variance = tf.nn.moments(groups, axes=[1, 2, 4], keepdims=True)
        groups = (groups - mean) * tf.math.rsqrt(variance + tf.constant(GROUP_NORM_EPS, x.dtype))
        gamma, beta = (self.read(f"{scope}/group_norm/{name}") for name in ("gamma", "beta"))
        return tf.nn.relu(tf.reshape(groups, shape) * gamma + beta)

    def _pad(self, x: TfTensor, size: int) -> TfTensor:
        return self.tf.pad(x, [[0, 0], [size, size], [size, size], [0, 0]]) if size else x
