"""What runs on a GPU computes what the CPU computes, and a killed run goes on bit for bit.

Skipped where torch finds no GPU: `python -m pytest tests/gpu`.
"""

import contextlib
import os
import subprocess
import sys
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from images import write_digits
from training import InProcess, make_data, make_model, make_recipe, sha256, weights_of

import bitzoo
from bitzoo.inference.evaluate import evaluate_pixels
from bitzoo.inference.runner import Runner
from bitzoo.models.architecture import Architecture
from bitzoo.runs.teachers import fast_dtype
from bitzoo.training import micro_batch_size
from bitzoo.training.checkpointing import latest_checkpoint
from bitzoo.training.trainer import train
from bitzoo.training.training_config import TrainingConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]

BATCH_NORM = Architecture((1, 1, 1, 1), 0.5, norm="batch")


def trained(device, dtype="float32", *, model=None, steps=6, **options):
    model = model or make_model()
    pixels, labels = make_data()
    losses = []
    config = TrainingConfig(device=device, dtype=dtype, micro_batch=4, **options)
    train(
        model,
        make_recipe(steps=steps),
        pixels,
        labels,
        config,
        on_step=lambda metrics: losses.append(metrics["loss"]),
    )
    return model.cpu(), losses


def relative(found, expected):
    """Distance of two state dicts' movements, relative L2."""
    difference = sum(float((found[n].double() - expected[n].double()).pow(2).sum()) for n in found)
    length = sum(float(expected[name].double().pow(2).sum()) for name in expected)
    return (difference / length) ** 0.5


@pytest.mark.parametrize("architecture", [Architecture((1, 1, 1, 1), 0.5), BATCH_NORM])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-2), ("bfloat16", 5e-2)])
def test_training_moves_the_weights_as_on_the_cpu(architecture, dtype, tolerance):
    """In float32, convolutions round to TF32, as torch is set: 5.5e-3 on an H100."""
    start = weights_of(make_model(architecture=architecture))
    moved = {}
    for device, kind in (("cpu", "float32"), ("cuda", dtype)):
        model, losses = trained(device, kind, model=make_model(architecture=architecture))
        assert all(np.isfinite(losses))
        moved[device] = {
            name: tensor - start[name]
            for name, tensor in weights_of(model).items()
            if tensor.is_floating_point()
        }
    assert relative(moved["cuda"], moved["cpu"]) < tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_logits_are_those_of_float64(dtype):
    model = make_model().eval()
    torch.nn.init.normal_(model.head.fc.weight, std=0.1)
    images, _ = make_data(16)
    pixels = np.stack(images.rows(np.arange(16)))
    with torch.no_grad():
        wide = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 127.5 - 1
        expected = model.double()(wide)
    model.float()
    found = Runner(model, "cuda", getattr(torch, dtype))(pixels)
    distance = float((torch.from_numpy(found).double() - expected).norm() / expected.norm())
    print(f"{dtype}: {distance:.1e}")
    assert distance < {"float32": 2e-5, "bfloat16": 5e-2, "float16": 5e-3}[dtype]


def test_evaluation_counts_as_on_the_cpu():
    model, _ = trained("cuda", steps=30)
    pixels, labels = make_data(400)
    classes = [str(number) for number in range(10)]
    there, here = (
        evaluate_pixels(model, pixels, labels, classes, device=device) for device in ("cuda", "cpu")
    )
    assert there.correct == here.correct
    assert there.loss == pytest.approx(here.loss, rel=1e-4)


def _train_on(report, folder, steps, resume):
    torch.use_deterministic_algorithms(True)
    model = make_model()
    pixels, labels = make_data()
    config = TrainingConfig(device="cuda", micro_batch=4, checkpoint_every=2)

    def on_step(metrics):
        report(metrics["step"])
        if not resume and metrics["step"] == steps:
            os.kill(os.getpid(), 9)

    start = latest_checkpoint(folder) if resume else None
    train(model, make_recipe(), pixels, labels, config, folder=folder, start=start, on_step=on_step)
    return sha256(model.cpu())


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    whole = InProcess(_train_on, tmp_path / "whole", 0, True, environment=environment).result()
    killed = InProcess(_train_on, tmp_path / "killed", 5, False, environment=environment)
    with contextlib.suppress(EOFError):
        while killed.next():
            pass
    killed.process.join(60)
    assert latest_checkpoint(tmp_path / "killed").step == 4
    rest = InProcess(_train_on, tmp_path / "killed", 0, True, environment=environment)
    assert rest.result() == whole


def test_too_large_a_micro_batch_is_halved():
    model = make_model(architecture=Architecture((1, 1, 1, 1), 1))
    pixels, labels = make_data(64)
    torch.cuda.set_per_process_memory_fraction((1 << 30) / torch.cuda.mem_get_info()[1])
    try:
        with mock.patch.object(micro_batch_size, "memory_for_maps", return_value=1 << 60):
            recipe = make_recipe(steps=1, batch_size=4096)
            result = train(model, recipe, pixels, labels, TrainingConfig(device="cuda"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert result.step == 1
    assert 1 <= result.micro_batch < 4096


@pytest.mark.parametrize("arch", ["R(1,1,1,1)x0.5", "R(1,1,1,1)x0.5-BN"])
def test_a_process_of_nccl_trains_as_one_alone(tmp_path, arch):
    write_digits(tmp_path / "digits", per_class=8, val_per_class=3)
    words = ["-m", "bitzoo", "pretrain", "--arch", arch, "--data", "digits", "--recipe", "bit-s"]
    words += ["--steps", "4", "--batch-size", "16", "--micro-batch", "16", "--resolution", "32"]
    words += ["--lr", "0.01", "--device", "cuda"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    weights = {}
    for name, before in (("alone", []), ("nccl", launch)):
        done = subprocess.run(
            [sys.executable, *before, *words, "--out", name],
            cwd=tmp_path,
            env={**os.environ, "BITZOO_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        weights[name] = weights_of(bitzoo.create_model(tmp_path / name))
    assert relative(weights["nccl"], weights["alone"]) < 1e-3


def test_distills_with_a_fast_teacher(tmp_path):
    assert fast_dtype(torch.device("cuda")) == "bfloat16"
    write_digits(tmp_path / "digits", per_class=12, val_per_class=5)
    common: dict[str, Any] = {
        "steps": 20,
        "batch_size": 20,
        "resolution": 32,
        "device": "cuda",
        "progress": False,
    }
    bitzoo.pretrain("R(1,1,1,1)x0.5", tmp_path / "digits", tmp_path / "teacher", **common)
    for device in ("cuda", "cpu"):
        bitzoo.distill(
            tmp_path / "teacher",
            "R(1,1,1,1)x0.5",
            tmp_path / "digits",
            tmp_path / device,
            **{**common, "device": device},
        )
    on_gpu, on_cpu = (weights_of(bitzoo.create_model(tmp_path / name)) for name in ("cuda", "cpu"))
    # Adam makes whole steps of gradients that are little but rounding: 5.2e-2 on an H100.
    assert relative(on_gpu, on_cpu) < 0.1


def test_a_probe_finds_what_it_finds_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    write_digits(tmp_path / "digits", per_class=20, val_per_class=10)
    write_npz(tmp_path / "own.npz", make_checkpoint(num_classes=10))
    here, there = (
        bitzoo.probe(
            tmp_path / "digits", [tmp_path / "own.npz"], device=device, resolution=32
        ).to_dict()
        for device in ("cpu", "cuda")
    )
    (own,), (others) = here["models"], there["models"][0]
    assert own["top1"] == pytest.approx(others["top1"], abs=0.021)  # two images on the fence
    assert others["top1"] > 0.3


def test_what_a_run_takes_is_measured_on_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    write_digits(tmp_path / "digits", per_class=8, val_per_class=3)
    write_npz(tmp_path / "own.npz", make_checkpoint(num_classes=10))
    found = bitzoo.forecast(tmp_path / "own.npz", tmp_path / "digits", steps=50).to_dict()
    assert found["device"] == "cuda"
    assert 0 < found["parts"]["training"] < 600
