"""Batch normalization over several processes against torch's own over all images at once."""

import os

import pytest
import torch
from torch.nn import functional as F
from training import in_processes

from bitzoo.inference.processes import join_processes
from bitzoo.models.batch_norm import BatchNormReLU
from bitzoo.training.batch_statistics import synchronize_statistics

SHARES, CHANNELS = (1, 4, 2), 5
TOLERANCE = 1e-12
"""float64, where only the order of additions differs."""


def make_inputs():
    """Images whose channels differ a lot, a gradient for them, scale and shift."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    spread = torch.tensor([1e-3, 1.0, 5.0, 1.0, 1.0], dtype=torch.float64)[:, None, None]
    x = draw(sum(SHARES), CHANNELS, 4, 3) * spread + 3
    return x, draw(*x.shape), draw(CHANNELS), draw(CHANNELS)


def make_norm(scale, shift):
    norm = BatchNormReLU(CHANNELS).double()
    norm.weight.data.copy_(scale)
    norm.bias.data.copy_(shift)
    return norm.train()


def share(report):
    join_processes("cpu")
    rank = int(os.environ["RANK"])
    rows = slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))
    x, grad, scale, shift = make_inputs()
    norm = make_norm(scale, shift)
    synchronize_statistics(norm)
    own = x[rows].clone().requires_grad_()
    y = norm(own)
    y.backward(grad[rows])
    statistics = norm.running_mean.clone(), norm.running_var.clone()
    norm.tracks = False
    norm(own)
    assert torch.equal(norm.running_mean, statistics[0])
    norm.tracks = True
    half = norm.float()(own.detach().bfloat16())
    norm.eval()(own.detach().float())  # of this process alone: others may make other passes
    norm.train().requires_grad_(False)
    norm(own.detach().float())
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    found = y.detach(), own.grad, norm.weight.grad.double(), norm.bias.grad.double(), *statistics
    return [tensor.numpy() for tensor in found], half.dtype == torch.bfloat16


@pytest.mark.slow
def test_three_processes_with_unequal_shares():
    outcomes = in_processes(len(SHARES), share)
    assert all(is_half for _, is_half in outcomes)
    x, grad, scale, shift = make_inputs()
    x.requires_grad_()
    scale.requires_grad_()
    shift.requires_grad_()
    mean, variance = torch.zeros_like(scale), torch.ones_like(scale)
    expected = F.relu(F.batch_norm(x, mean, variance, scale, shift, True, 0.01, 1e-3))
    expected.backward(grad)
    parts = [[torch.from_numpy(array) for array in arrays] for arrays, _ in outcomes]
    y, x_grad, scale_grad, shift_grad = (
        list(column) for column in list(zip(*parts, strict=True))[:4]
    )
    torch.testing.assert_close(torch.cat(y), expected.detach(), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(torch.cat(x_grad), x.grad, rtol=TOLERANCE, atol=1e-11)
    torch.testing.assert_close(sum(scale_grad), scale.grad, rtol=1e-6, atol=1e-5)  # kept as float32
    torch.testing.assert_close(sum(shift_grad), shift.grad, rtol=1e-6, atol=1e-5)
    for part in parts:
        torch.testing.assert_close(part[4], mean, rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(part[5], variance, rtol=TOLERANCE, atol=TOLERANCE)
        assert torch.equal(part[4], parts[0][4])
        assert torch.equal(part[5], parts[0][5])


def test_torch_has_none_for_the_cpu(monkeypatch):
    """The reason for this one; it could go when this fails."""
    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    with pytest.raises(ValueError, match="expected input tensor to be on GPU"):
        torch.nn.SyncBatchNorm(CHANNELS)(torch.zeros(2, CHANNELS, 3, 3))
