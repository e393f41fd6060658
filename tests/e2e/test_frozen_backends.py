"""`--freeze` with `--backend` and `--dtype`: features of that backend, then a head by hand."""

import json
from pathlib import Path

import numpy as np
import old_run_data
import plain_training
import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from safetensors.numpy import load_file

import bitzoo
from bitzoo.data.sampler import BatchPlan
from bitzoo.errors import UsageError
from bitzoo.training.recipe import Recipe

RESIZE, CROP, BATCH, STEPS, SEED = 36, 32, 5, 3, 4
CLASSES = old_run_data.CLASSES


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    old_run_data.write_data(tmp_path / "data")
    write_npz(tmp_path / "tiny.npz", make_checkpoint(num_classes=0))
    return tmp_path


def freeze(folder, out, **options):
    return bitzoo.finetune(
        folder / "tiny.npz", folder / "data", folder / out, freeze=True, steps=STEPS, mixup=0,
        batch_size=BATCH, resolution=(RESIZE, CROP), seed=SEED, progress=False, **options,
    )  # fmt: skip


def features_by(folder, dtype, backend):
    """Of the training images, which `optimize` gets as evaluations do: resized, whole."""
    side = old_run_data.SIDE
    images = np.stack(
        [
            plain_training.resized(old_run_data.pixels(kind, number), (0, 0, side, side), CROP)
            for kind in range(len(CLASSES))
            for number in range(old_run_data.TRAIN)
        ]
    )
    encoder = bitzoo.create_model(folder / "tiny.npz", pretrained=True, num_classes=0)
    run = bitzoo.optimize(encoder, dtype=dtype, backend=backend)
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return run(scaled).double().numpy()


def head_by_hand(features, recipe):
    """Momentum SGD on the cross entropy, in float64 NumPy."""
    labels = np.arange(len(CLASSES)).repeat(old_run_data.TRAIN)
    plan = BatchPlan(len(labels), BATCH, 1, 1, flip=False, mixup_alpha=0, seed=SEED)
    kernel, bias = np.zeros((len(CLASSES), features.shape[1])), np.zeros(len(CLASSES))
    speeds = [np.zeros_like(kernel), np.zeros_like(bias)]
    for step in range(STEPS):
        rows = plan.batch(step).indices
        logits = features[rows] @ kernel.T + bias
        powers = np.exp(logits - logits.max(1, keepdims=True))
        error = powers / powers.sum(1, keepdims=True) - np.eye(len(CLASSES))[labels[rows]]
        for tensor, speed, gradient in zip(
            (kernel, bias), speeds, (error.T @ features[rows], error.sum(0)), strict=True
        ):
            speed *= 0.9
            speed += gradient / BATCH
            tensor -= recipe.schedule.lr_at(step) * speed
    return kernel, bias


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [
        ("float32", "eager"),
        ("bfloat16", "eager"),
        pytest.param("float32", "openvino", marks=pytest.mark.slow),
    ],
)
def test_the_head_is_trained_on_the_features_of_the_backend(workspace, dtype, backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    freeze(workspace, "run", dtype=dtype, backend=backend)
    record = json.loads((workspace / "run" / "run.json").read_text())
    assert record.get("backend", "eager") == backend
    assert ("backend" in record) == (backend != "eager")  # records from before have no such word
    assert record["options"]["config"]["backend"] == backend
    wanted = features_by(workspace, dtype, backend)
    kernel, bias = head_by_hand(wanted, Recipe.from_dict(record["recipe"]))
    found = load_file(workspace / "run" / "model.safetensors")
    scale = np.abs(kernel).max()
    np.testing.assert_allclose(found["head.fc.weight"][:, :, 0, 0], kernel, atol=1e-5 * scale)
    np.testing.assert_allclose(found["head.fc.bias"], bias, atol=1e-5 * np.abs(bias).max())
    if dtype == "bfloat16":  # and by no others: those of float32 are far enough away to tell
        other = head_by_hand(
            features_by(workspace, "float32", "eager"), Recipe.from_dict(record["recipe"])
        )[0]
        assert np.abs(other - kernel).max() > 1e-4 * scale


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "openvino", "dtype": "float16"},
            "The backend openvino computes in float32 or bfloat16, found float16.",
        ),
        ({"backend": "tpu"}, "`backend` must be one of eager, compile, onnxruntime, openvino,"),
        (
            {"backend": "openvino", "freeze": False},
            "`backend='openvino'` computes features that only the head is trained on. Add "
            "`freeze=True`, or leave it out.",
        ),
    ],
)
def test_what_cannot_be_is_said_before_the_data_are_read(tmp_path, options, message):
    given = {"freeze": True, **options}
    with pytest.raises(UsageError) as error:
        bitzoo.finetune("tiny.npz", Path("no-data"), tmp_path / "run", **given)
    assert str(error.value).startswith(message)
