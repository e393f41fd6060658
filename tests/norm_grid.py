"""Networks of the paper's ablation with random weights, and their function written apart.

`plain_forward` spells the tensor names itself and uses no layer of bitzoo's, so that it judges
both. Formulas: arXiv 1912.11370 section 3.2 for the network, arXiv 1502.03167 for batch
normalization, arXiv 1803.08494 for group normalization, arXiv 1903.10520 for the kernels.
"""

import torch
from torch.nn import functional as F

from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT

ENDINGS = ("", "-BN", "-noWS", "-BN-noWS")
TINY = "R(1,2,1,1)x0.5"
CLASSES = 5


def random_state(architecture, num_classes=CLASSES, seed=0, dtype=torch.float64):
    """Return a random state dict; running statistics are far from those of a new network."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def one(name, like):
        if name.endswith("running_mean"):
            return 0.5 * draw(*like.shape)
        if name.endswith("running_var"):
            return 0.3 + 2 * torch.rand(like.shape, generator=generator, dtype=torch.float64)
        if like.ndim == 4 and not name.startswith("head"):
            fan_in = like[0].numel()
            mean = 0.5 * draw(like.shape[0], 1, 1, 1)
            return (draw(*like.shape) + mean) * (2 / fan_in) ** 0.5
        if like.ndim == 4:
            return draw(*like.shape) / like.shape[1] ** 0.5
        return (1 if name.endswith("weight") else 0) + 0.3 * draw(*like.shape)

    with torch.device("meta"):
        names = BiT(architecture, num_classes).state_dict()
    return {name: one(name, like).to(dtype) for name, like in names.items()}


def make(name, num_classes=CLASSES, seed=0, dtype=torch.float64, **options):
    """Return a network in evaluation mode with `random_state`."""
    architecture = Architecture.parse(name)
    model = BiT(architecture, num_classes, **options).to(dtype)
    model.load_state_dict(random_state(architecture, num_classes, seed, dtype))
    return model.eval()


def images_of(count=3, size=48, seed=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64) * 2 - 1).to(
        dtype
    )


def plain_forward(state, images, *, norm, standardized, training=False, seen=None):
    """Compute the logits from a state dict.

    Args:
        state: timm's names -> tensors, or leaves that require gradients.
        images: (batch, 3, height, width).
        norm: ``batch`` or ``group``.
        standardized: Whether kernels are standardized.
        training: Whether batch normalization takes the batch's statistics.
        seen: Receives name of a norm -> (mean, biased variance, values per channel).
    """

    def conv(x, name, stride=1):
        kernel = state[f"{name}.weight"]
        if standardized:
            flat = kernel.flatten(1)
            flat = flat - flat.mean(1, keepdim=True)
            flat = flat / ((flat**2).mean(1, keepdim=True) + 1e-10).sqrt()
            kernel = flat.reshape(kernel.shape)
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def normalized(x, name):
        weight, bias = (state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        if norm == "group":
            groups = x.reshape(len(x), 32, -1)
            mean = groups.mean(2, keepdim=True)
            variance = ((groups - mean) ** 2).mean(2, keepdim=True)
            x = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
        else:
            if training:
                mean = x.mean((0, 2, 3))
                variance = ((x - mean.view(1, -1, 1, 1)) ** 2).mean((0, 2, 3))
                if seen is not None:
                    seen[name] = mean.detach(), variance.detach(), x[:, 0].numel()
            else:
                mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
            x = (x - mean.view(1, -1, 1, 1)) / (variance.view(1, -1, 1, 1) + 1e-3).sqrt()
        return (x * weight + bias).clamp_min(0)

    x = conv(images, "stem.conv", 2)
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
    block = 0
    while f"stages.{block}.blocks.0.conv1.weight" in state:
        unit = 0
        while f"stages.{block}.blocks.{unit}.conv1.weight" in state:
            name = f"stages.{block}.blocks.{unit}"
            stride = 2 if block and not unit else 1
            h = normalized(x, f"{name}.norm1")
            shortcut = conv(h, f"{name}.downsample.conv", stride) if unit == 0 else x
            h = conv(h, f"{name}.conv1")
            h = conv(normalized(h, f"{name}.norm2"), f"{name}.conv2", stride)
            x = conv(normalized(h, f"{name}.norm3"), f"{name}.conv3") + shortcut
            unit += 1
        block += 1
    x = normalized(x, "norm").mean((2, 3))
    return x @ state["head.fc.weight"].flatten(1).T + state["head.fc.bias"]


def distance(found, expected):
    """Return the relative L2 distance."""
    return ((found - expected).norm() / expected.norm()).item()
