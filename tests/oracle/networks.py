"""An independent BiT forward pass: float64, plain functions, Google's tensor names.

Written from google-research/big_transfer, bit_pytorch/models.py. Nothing is imported from bitzoo
and nothing but convolution and pooling is left to torch: standardization and group normalization
are spelled out, in the layout of the released files (kernels HWIO).
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Pass:
    """All that a forward pass leaves: every tensor is float64.

    Attributes:
        root: The root convolution at stride 2, before its pool.
        blocks: Outputs of the four blocks, not normalized.
        features: The last block's output, normalized and rectified.
        pooled: `features` averaged over the image, (batch, channels).
        logits: (batch, classes), or None if the checkpoint has no head.
    """

    root: torch.Tensor
    blocks: list[torch.Tensor]
    features: torch.Tensor
    pooled: torch.Tensor
    logits: torch.Tensor | None


def run(weights, images, *, eps=1e-10, root_padding=0.0) -> Pass:
    """Run the network that `weights` holds.

    Args:
        weights: Name in a released npz -> array, or float64 tensor where gradients are wanted.
        images: (batch, channels, height, width).
        eps: Added to a kernel's variance.
        root_padding: What surrounds the root's map before its max-pool; the release has zeros.
    """
    weights = {name: as_float64(array) for name, array in weights.items()}
    images = as_float64(images)
    root = convolve(weights, "resnet/root_block", images, eps, stride=2)
    x = F.max_pool2d(F.pad(root, (1, 1, 1, 1), value=root_padding), 3, 2)
    blocks = []
    for block in range(1, 5):
        for unit in itertools.count(1):
            name = f"resnet/block{block}/unit{unit:02d}"
            if f"{name}/a/group_norm/gamma" not in weights:
                break
            stride = 2 if block > 1 and unit == 1 else 1
            x = bottleneck(weights, name, x, eps, stride)
        blocks.append(x)
    features = normalize_relu(weights, "resnet", x)
    pooled = features.mean(dim=(2, 3))
    logits = None
    if "resnet/head/conv2d/kernel" in weights:
        matrix = weights["resnet/head/conv2d/kernel"][0, 0]
        logits = pooled @ matrix + weights["resnet/head/conv2d/bias"]
    return Pass(root, blocks, features, pooled, logits)


def as_float64(array):
    return torch.as_tensor(array).to(torch.float64)


def bottleneck(weights, name, x, eps, stride):
    preactivated = normalize_relu(weights, f"{name}/a", x)
    shortcut = x
    if f"{name}/a/proj/standardized_conv2d/kernel" in weights:
        shortcut = convolve(weights, f"{name}/a/proj", preactivated, eps, stride)
    y = convolve(weights, f"{name}/a", preactivated, eps)
    y = convolve(weights, f"{name}/b", normalize_relu(weights, f"{name}/b", y), eps, stride)
    y = convolve(weights, f"{name}/c", normalize_relu(weights, f"{name}/c", y), eps)
    return shortcut + y


def convolve(weights, name, x, eps, stride=1):
    kernel_hwio = weights[f"{name}/standardized_conv2d/kernel"]
    centered = kernel_hwio - kernel_hwio.mean(dim=(0, 1, 2))
    variance = (centered**2).mean(dim=(0, 1, 2))
    kernel_oihw = (centered / (variance + eps).sqrt()).permute(3, 2, 0, 1)
    return F.conv2d(x, kernel_oihw, stride=stride, padding=kernel_hwio.shape[0] // 2)


def normalize_relu(weights, name, x):
    groups = x.unflatten(1, (32, -1))
    centered = groups - groups.mean(dim=(2, 3, 4), keepdim=True)
    variance = (centered**2).mean(dim=(2, 3, 4), keepdim=True)
    normalized = (centered / (variance + 1e-5).sqrt()).flatten(1, 2)
    gamma = weights[f"{name}/group_norm/gamma"][:, None, None]
    beta = weights[f"{name}/group_norm/beta"][:, None, None]
    return (normalized * gamma + beta).clamp(min=0)
