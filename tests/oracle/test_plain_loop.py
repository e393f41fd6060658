"""The plain loop itself, against Pillow, timm, torch's losses and torch's optimizers."""

from functools import partial
from typing import Any

import numpy as np
import plain_training
import pytest
import torch
import torch.nn.functional as F
from images import photo
from plain_training import Net

ROUNDING = 1e-12
"""Relative; the same numbers in float64, summed in another order."""


def close(found, wanted, tolerance=ROUNDING):
    scale = wanted.abs().max().clamp(min=1e-3)
    return float((found - wanted).abs().max() / scale) <= tolerance


@pytest.mark.parametrize("size", [8, 32, 57])
@pytest.mark.parametrize("box", [(0, 0, 40, 61), (3, 5, 30, 40), (7, 11, 9, 12), (39, 60, 1, 1)])
def test_a_box_is_resized_by_antialiased_bilinear_means(box, size):
    """Pillow rounds twice, to whole numbers: after the rows and after the columns."""
    pixels = np.asarray(photo(seed=1))
    found = plain_training.resized(pixels, box, size)
    assert found.dtype == np.uint8
    assert np.abs(found - plain_training.averaged(pixels, box, size)).max() <= 1 + 1e-4


def test_the_losses_are_those_of_torch():
    random = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(6, 5, generator=random, dtype=torch.float64)
    teacher = 8 * torch.randn(6, 5, generator=random, dtype=torch.float64)
    shares = torch.rand(6, 5, generator=random, dtype=torch.float64)
    soft = shares / shares.sum(dim=1, keepdim=True)
    several = (shares > 0.5).to(torch.float64)

    wanted = F.cross_entropy(logits, soft, reduction="none")
    assert close(plain_training.softmax_loss(logits, soft), wanted)

    wanted = F.binary_cross_entropy_with_logits(logits, several, reduction="none").sum(dim=1)
    assert close(plain_training.sigmoid_loss(logits, several), wanted)

    for heat in (1, 2.5, 10):
        student, target = (F.log_softmax(x / heat, dim=1) for x in (logits, teacher))
        wanted = F.kl_div(student, target, reduction="none", log_target=True).sum(dim=1) * heat**2
        assert close(plain_training.distillation_loss(logits, teacher, heat), wanted)


OPTIMIZERS = [
    (plain_training.Momentum(decay=0.3), torch.optim.SGD, {"momentum": 0.9}),
    (plain_training.Adam(decay=0.3), torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-8}),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_optimizers_are_those_of_torch(ours, theirs, options, clip):
    ours = type(ours)(decay=ours.decay)
    tensors = plain_training.draw_tensors(Net(), head="random")
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in tensors.items()}
    decayed = [p for name, p in parameters.items() if p.ndim == 4]
    others = [p for name, p in parameters.items() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    optimizer = theirs(groups, **options)
    random = torch.Generator().manual_seed(1)
    for lr in (0.0, 0.01, 0.1, 0.05):
        gradients = {}
        for name, parameter in parameters.items():
            shape = parameter.shape
            gradients[name] = torch.randn(shape, generator=random, dtype=torch.float64)
            parameter.grad = gradients[name].clone()
        gradients, norm = plain_training.clipped(gradients, clip)
        if clip is not None:
            found = torch.nn.utils.get_total_norm([p.grad for p in parameters.values()])
            assert norm == pytest.approx(float(found), rel=1e-12)
            for parameter in parameters.values():
                parameter.grad *= clip / norm
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        ours.step(tensors, gradients, lr)
    for name, parameter in parameters.items():
        assert close(tensors[name], parameter.detach()), name


def test_short_gradients_are_not_lengthened():
    gradients = {"a": torch.tensor([0.3, 0.4], dtype=torch.float64)}
    found, norm = plain_training.clipped(gradients, 1.0)
    assert norm == pytest.approx(0.5)
    assert torch.equal(found["a"], gradients["a"])


@pytest.mark.parametrize("standardized", [True, False])
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_that_of_timm(norm, standardized, training):
    """With the eps of this network, which differ from timm's defaults."""
    from timm.layers import BatchNormAct2d, GroupNormAct, StdConv2d, create_conv2d
    from timm.models.resnetv2 import ResNetV2

    norm_layer: partial[Any]
    if norm == "group":
        norm_layer = partial(GroupNormAct, num_groups=32, eps=plain_training.GROUP_EPS)
    else:
        norm_layer = partial(BatchNormAct2d, eps=plain_training.BATCH_EPS, momentum=0.01)
    conv_layer = (
        partial(StdConv2d, eps=plain_training.KERNEL_EPS) if standardized else create_conv2d
    )
    model = ResNetV2(
        [1, 1, 1, 1],
        channels=(128, 256, 512, 1024),
        stem_chs=32,
        num_classes=10,
        stem_type="fixed",
        norm_layer=norm_layer,
        conv_layer=conv_layer,
    ).double()
    net = Net(norm, standardized)
    tensors = plain_training.draw_tensors(net, head="random", seed=3)
    random = torch.Generator().manual_seed(2)
    if norm == "batch":
        for name in filter(plain_training.is_buffer, tensors):
            tensors[name] = 0.5 + torch.rand(tensors[name].shape, generator=random).double()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    images = torch.rand(3, 3, 64, 64, generator=random, dtype=torch.float64) * 2 - 1
    model.train(training)
    with torch.no_grad():
        wanted = model(images)
        found = plain_training.logits_of(net, tensors, images, training)
    assert close(found, wanted, 1e-11)
    after = model.state_dict()
    for name in filter(plain_training.is_buffer, tensors):
        assert close(tensors[name], after[name], 1e-11), name


def test_decay_is_on_kernels_only():
    tensors = plain_training.draw_tensors(Net("batch"))
    decayed = {name for name in tensors if plain_training.is_kernel(name)}
    assert decayed == {name for name, tensor in tensors.items() if tensor.ndim == 4}
    assert len(decayed) == 1 + 4 * 4 + 1
