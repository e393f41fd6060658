"""Pre-training and distillation as one plain loop in float64, written apart from bitzoo.

Everything is spelled out from the papers and from what the recipes' words mean: the pre-activation
network as functions of a dict of tensors under timm's names, losses from logarithms, clipping,
momentum and Adam as sums and products. Nothing is imported from bitzoo. What is random (which
images, which boxes, which are mirrored, how they are mixed) is given as data, one `Draw` a step.
torch convolves, pools and differentiates, and Pillow resizes a crop, no more.
"""

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

# --- network ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Net:
    """What a network is besides its tensors.

    Attributes:
        norm: "group": 32 groups, eps 1e-5. "batch": eps 1e-3, momentum 0.99 in TensorFlow's sense.
        standardized: Whether each convolution kernel has mean 0 and variance 1 when it is used.
    """

    norm: str = "group"
    standardized: bool = True


BATCH_EPS, GROUP_EPS, KERNEL_EPS = 1e-3, 1e-5, 1e-10
KEPT = 0.99
"""Share of the running statistics that a step keeps."""


def draw_tensors(net, classes=10, depths=(1, 1, 1, 1), base=32, head="zero", seed=0):
    """Random tensors of a network under timm's names, float64, also its running statistics.

    Args:
        net: Which network.
        classes: Outputs of the head.
        depths: Units in each block.
        base: Channels of the root, 64 times the width.
        head: "zero", or "random", which a teacher needs.
        seed: Of NumPy's generator.
    """
    random = np.random.default_rng(seed)
    tensors = {}

    def kernel(name, outputs, inputs, size):
        spread = math.sqrt(2 / (inputs * size * size))
        tensors[f"{name}.weight"] = random.normal(0, spread, (outputs, inputs, size, size))

    def norm(name, channels):
        tensors[f"{name}.weight"] = random.uniform(0.5, 1.5, channels)
        tensors[f"{name}.bias"] = random.uniform(-0.5, 0.5, channels)
        if net.norm == "batch":
            tensors[f"{name}.running_mean"] = np.zeros(channels)
            tensors[f"{name}.running_var"] = np.ones(channels)

    kernel("stem.conv", base, 3, 7)
    inputs = base
    for block, depth in enumerate(depths):
        mid = base * 2**block
        for unit in range(depth):
            name = f"stages.{block}.blocks.{unit}"
            norm(f"{name}.norm1", inputs)
            kernel(f"{name}.conv1", mid, inputs, 1)
            norm(f"{name}.norm2", mid)
            kernel(f"{name}.conv2", mid, mid, 3)
            norm(f"{name}.norm3", mid)
            kernel(f"{name}.conv3", 4 * mid, mid, 1)
            if unit == 0:
                kernel(f"{name}.downsample.conv", 4 * mid, inputs, 1)
            inputs = 4 * mid
    norm("norm", inputs)
    shape = (classes, inputs, 1, 1)
    is_zero = head == "zero"
    tensors["head.fc.weight"] = np.zeros(shape) if is_zero else random.normal(0, 0.02, shape)
    tensors["head.fc.bias"] = np.zeros(classes) if is_zero else random.normal(0, 0.05, classes)
    return {name: torch.tensor(array, dtype=torch.float64) for name, array in tensors.items()}


def is_buffer(name):
    return name.endswith(("running_mean", "running_var"))


def is_kernel(name):
    """Whether weight decay is on it: kernels of convolutions and of the head, nothing else."""
    return name.endswith("weight") and (".conv" in name or name == "head.fc.weight")


def logits_of(net, tensors, images, training):
    """Logits; while training with batch norm, also changes the running statistics in `tensors`."""
    x = _convolve(net, tensors, "stem.conv", images, stride=2)
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2)  # zeros compete with negative values
    for block in range(4):
        for unit in itertools.count():
            name = f"stages.{block}.blocks.{unit}"
            if f"{name}.conv1.weight" not in tensors:
                break
            stride = 2 if block > 0 and unit == 0 else 1
            active = _norm_relu(net, tensors, f"{name}.norm1", x, training)
            shortcut = x
            if f"{name}.downsample.conv.weight" in tensors:
                shortcut = _convolve(net, tensors, f"{name}.downsample.conv", active, stride)
            y = _convolve(net, tensors, f"{name}.conv1", active)
            y = _norm_relu(net, tensors, f"{name}.norm2", y, training)
            y = _convolve(net, tensors, f"{name}.conv2", y, stride)
            y = _norm_relu(net, tensors, f"{name}.norm3", y, training)
            x = shortcut + _convolve(net, tensors, f"{name}.conv3", y)
    x = _norm_relu(net, tensors, "norm", x, training)
    pooled = x.mean(dim=(2, 3))
    return pooled @ tensors["head.fc.weight"][:, :, 0, 0].T + tensors["head.fc.bias"]


def _convolve(net, tensors, name, x, stride=1):
    kernel = tensors[f"{name}.weight"]
    if net.standardized:
        centered = kernel - kernel.mean(dim=(1, 2, 3), keepdim=True)
        variance = (centered**2).mean(dim=(1, 2, 3), keepdim=True)
        kernel = centered / torch.sqrt(variance + KERNEL_EPS)
    return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)


def _norm_relu(net, tensors, name, x, training):
    scale = tensors[f"{name}.weight"][:, None, None]
    shift = tensors[f"{name}.bias"][:, None, None]
    if net.norm == "group":
        groups = x.unflatten(1, (32, -1))
        centered = groups - groups.mean(dim=(2, 3, 4), keepdim=True)
        variance = (centered**2).mean(dim=(2, 3, 4), keepdim=True)
        normed = (centered / torch.sqrt(variance + GROUP_EPS)).flatten(1, 2)
    elif training:
        mean = x.mean(dim=(0, 2, 3))
        centered = x - mean[:, None, None]
        variance = (centered**2).mean(dim=(0, 2, 3))
        normed = centered / torch.sqrt(variance + BATCH_EPS)[:, None, None]
        count = x.numel() / x.shape[1]
        unbiased = variance * (count / (count - 1))  # as TensorFlow's fused kernel does
        for kind, new in (("running_mean", mean), ("running_var", unbiased)):
            old = tensors[f"{name}.{kind}"]
            tensors[f"{name}.{kind}"] = KEPT * old + (1 - KEPT) * new.detach()
    else:
        mean = tensors[f"{name}.running_mean"][:, None, None]
        variance = tensors[f"{name}.running_var"][:, None, None]
        normed = (x - mean) / torch.sqrt(variance + BATCH_EPS)
    return torch.clamp(normed * scale + shift, min=0)


# --- losses: one number a row -------------------------------------------------------------------


def _log_softmax(logits):
    shifted = logits - logits.max(dim=1, keepdim=True).values.detach()
    return shifted - torch.log(torch.exp(shifted).sum(dim=1, keepdim=True))


def softmax_loss(logits, targets):
    """Cross-entropy with a distribution over classes."""
    return -(targets * _log_softmax(logits)).sum(dim=1)


def sigmoid_loss(logits, targets):
    """One binary cross-entropy per class, summed over the classes."""
    # log sigmoid(x) = -log(1 + exp(-x)), with the exponential of a negative number only
    softplus = torch.log1p(torch.exp(-logits.abs())) + torch.clamp(logits, min=0)
    return (softplus - targets * logits).sum(dim=1)


def distillation_loss(logits, teacher_logits, temperature):
    """KL(teacher || student) of both at a temperature, times the temperature squared."""
    wanted = _log_softmax(teacher_logits / temperature)
    found = _log_softmax(logits / temperature)
    return temperature**2 * (torch.exp(wanted) * (wanted - found)).sum(dim=1)


# --- images -------------------------------------------------------------------------------------


def resized(image, box, size):
    """Cut a box out and resize it by Pillow's antialiased bilinear filter: uint8.

    The box is cut out first, so that its edges know nothing of the pixels beyond them.

    Args:
        image: uint8 (height, width, 3).
        box: (top, left, height, width) in pixels.
        size: Edge of the result.
    """
    top, left, height, width = (int(number) for number in box)
    part = Image.fromarray(image[top : top + height, left : left + width])
    return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))


def averaged(image, box, size):
    """The same without Pillow and without rounding: weighted means in float64.

    The weights are a triangle around the centre of each pixel of the result, as wide as two pixels
    of the result and at least two of the image.
    """
    top, left, height, width = (int(number) for number in box)
    part = image[top : top + height, left : left + width].astype(np.float64)
    rows, columns = (_triangles(length, size) for length in (height, width))
    return np.einsum("yh,hwc,xw->yxc", rows, part, columns)


def _triangles(length, size):
    """Weights (size, length); those of each row sum to 1."""
    ratio = length / size
    centers = (np.arange(size)[:, None] + 0.5) * ratio
    distances = np.abs(np.arange(length) + 0.5 - centers) / max(ratio, 1.0)
    weights = np.maximum(0, 1 - distances)
    return weights / weights.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Draw:
    """What is random in one step.

    Attributes:
        indices: Index of each row's image.
        boxes: (top, left, height, width) of each row's crop in its image.
        flips: Whether each row is mirrored.
        mix: Row that each row is mixed with; None without MixUp.
        lam: Weight of the row itself.
    """

    indices: list
    boxes: list
    flips: list
    mix: np.ndarray | None = None
    lam: float = 1.0


def batch_of(draw, images, targets, size):
    """Images (n, 3, size, size) and targets (n, classes) of a step, as float64 tensors.

    Pixels and MixUp's weights are numbers of float32, each operation rounded, as documented of the
    loader; from there on everything is float64.

    Args:
        draw: What was drawn.
        images: uint8 arrays, (height, width, 3) each.
        targets: (images, classes).
        size: Edge.
    """
    rows = []
    for index, box, is_flipped in zip(draw.indices, draw.boxes, draw.flips, strict=True):
        pixels = resized(images[index], box, size).astype(np.float32)
        pixels = pixels[:, ::-1] if is_flipped else pixels
        rows.append(pixels / np.float32(127.5) - np.float32(1))
    batch = np.stack(rows).transpose(0, 3, 1, 2)
    wanted = targets[np.asarray(draw.indices)].astype(np.float32)
    if draw.mix is not None:
        own, other = np.float32(draw.lam), np.float32(1 - draw.lam)
        batch = batch * own + batch[draw.mix] * other
        wanted = wanted * own + wanted[draw.mix] * other
    return torch.tensor(batch, dtype=torch.float64), torch.tensor(wanted, dtype=torch.float64)


# --- optimizers ---------------------------------------------------------------------------------


@dataclass
class Momentum:
    """SGD with a momentum buffer; the decay is part of the gradient of kernels."""

    decay: float = 0.0
    momentum: float = 0.9
    buffers: dict = field(default_factory=dict)

    def step(self, tensors, gradients, lr):
        for name, gradient in gradients.items():
            if is_kernel(name):
                gradient = gradient + self.decay * tensors[name]
            buffer = self.momentum * self.buffers.get(name, 0.0) + gradient
            self.buffers[name] = buffer
            tensors[name] = tensors[name] - lr * buffer


@dataclass
class Adam:
    """Adam with corrected moments; kernels lose lr * decay of themselves besides."""

    decay: float = 0.0
    betas: tuple = (0.9, 0.999)
    eps: float = 1e-8
    first: dict = field(default_factory=dict)
    second: dict = field(default_factory=dict)
    made: int = 0

    def step(self, tensors, gradients, lr):
        self.made += 1
        a, b = self.betas
        for name, gradient in gradients.items():
            self.first[name] = a * self.first.get(name, 0.0) + (1 - a) * gradient
            self.second[name] = b * self.second.get(name, 0.0) + (1 - b) * gradient**2
            mean = self.first[name] / (1 - a**self.made)
            scale = torch.sqrt(self.second[name] / (1 - b**self.made)) + self.eps
            lost = self.decay * tensors[name] if is_kernel(name) else 0.0
            tensors[name] = tensors[name] - lr * (mean / scale + lost)


def clipped(gradients, most):
    """Gradients whose common L2 norm is at most `most`, and what it was."""
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
    if most is not None and norm > most:
        gradients = {name: gradient * (most / norm) for name, gradient in gradients.items()}
    return gradients, norm


# --- the loop -----------------------------------------------------------------------------------


def train(net, tensors, batches, lrs, loss, optimizer, *, clip=None, teacher=None):
    """Train; returns the tensors after the last step, the loss of each, and the gradients' norms.

    Args:
        net: Which network.
        tensors: As from `draw_tensors`; not changed.
        batches: One (images, targets) a step.
        lrs: The learning rate of each step.
        loss: (logits, targets) to one number a row.
        optimizer: `Momentum` or `Adam`.
        clip: Largest norm of the gradients.
        teacher: From the images of a step to what takes the place of targets.
    """
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    losses, norms = [], []
    for (images, targets), lr in zip(batches, lrs, strict=True):
        leaves = {
            name: tensor.detach().requires_grad_(not is_buffer(name))
            for name, tensor in tensors.items()
        }
        trained = [name for name in leaves if not is_buffer(name)]
        if teacher is not None:
            with torch.no_grad():
                targets = teacher(images)
        value = loss(logits_of(net, leaves, images, training=True), targets).mean()
        parts = torch.autograd.grad(value, [leaves[name] for name in trained])
        gradients, norm = clipped(dict(zip(trained, parts, strict=True)), clip)
        losses.append(float(value.detach()))
        norms.append(norm)
        tensors = {name: tensor.detach() for name, tensor in leaves.items()}
        optimizer.step(tensors, gradients, lr)
    return tensors, losses, norms
