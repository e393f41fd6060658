"""Convolutions are kept from TF32 where float32 is asked for, and the setting comes back."""

from typing import Any

import pytest
import torch

from bitzoo.inference.exact_float32 import exact_convolutions, rounds_to_tf32

CUDA = torch.device("cuda")
CUDNN: Any = torch.backends.cudnn


def by_the_older_interface(tf32):
    CUDNN.allow_tf32 = tf32


def by_the_newer_interface(tf32):
    CUDNN.conv.fp32_precision = "tf32" if tf32 else "ieee"
    CUDNN.rnn.fp32_precision = "ieee"


def is_allowed():
    return CUDNN.conv.fp32_precision == "tf32"


@pytest.fixture(params=[by_the_older_interface, by_the_newer_interface])
def choose(request):
    yield request.param
    CUDNN.allow_tf32 = True  # torch's own setting, for both interfaces
    assert is_allowed()


@pytest.mark.parametrize("tf32", [True, False])
def test_float32_on_a_gpu_is_exact(choose, tf32):
    choose(tf32)
    with exact_convolutions(CUDA, torch.float32):
        assert not is_allowed()
    assert is_allowed() == tf32


def test_whoever_reads_the_older_interface_meanwhile_is_answered():
    with exact_convolutions(CUDA, torch.float32):
        assert CUDNN.allow_tf32 is False
    assert CUDNN.allow_tf32 is True


def test_the_setting_comes_back_after_a_failure(choose):
    choose(True)
    with pytest.raises(KeyError), exact_convolutions(CUDA, torch.float32):
        raise KeyError
    assert is_allowed()


@pytest.mark.parametrize(
    ("device", "dtype"), [(torch.device("cpu"), torch.float32), (CUDA, torch.bfloat16)]
)
def test_nothing_else_is_touched(device, dtype):
    with exact_convolutions(device, dtype):
        assert is_allowed()


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "override", "expected"),
    [
        (CUDA, torch.float32, 9, None, True),
        (CUDA, torch.float32, 8, None, True),
        (CUDA, torch.float32, 7, None, False),  # has none
        (CUDA, torch.float32, 9, "0", False),
        (CUDA, torch.float32, 9, "1", True),
        (CUDA, torch.bfloat16, 9, None, False),
        (torch.device("cpu"), torch.float32, 9, None, False),
    ],
)
def test_whether_training_rounds(monkeypatch, device, dtype, capability, override, expected):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    if override is not None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
    assert rounds_to_tf32(device, dtype) == expected


def test_what_was_turned_off_does_not_round(monkeypatch, choose):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    choose(True)
    assert rounds_to_tf32(CUDA, torch.float32)
    choose(False)
    assert not rounds_to_tf32(CUDA, torch.float32)
