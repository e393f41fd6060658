"""AdamW, decay on kernels, clipping and the sigmoid loss, against plain torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from training import CLASSES, CROP, Digits, digits, make_model, make_recipe, weights_of

from bitzoo.data.label_sets import LabelSets
from bitzoo.training.batches import batch_plan
from bitzoo.training.checkpointing import latest_checkpoint
from bitzoo.training.optimizers import NamedOptimizer
from bitzoo.training.trainer import train
from bitzoo.training.training_config import TrainingConfig

SETS = [[n % 10, (n * 7 + 3) % 10] if n % 3 else [n % 10] for n in range(40)]
RECIPES = {
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "betas": (0.8, 0.95), "lr": 0.001},
    "kernels": {"weight_decay": 0.05, "decayed": "kernels", "clip_norm": 0.5, "lr": 0.02},
    "sigmoid": {"loss": "sigmoid_cross_entropy", "weight_decay": 0.05, "lr": 0.001},
}


def make_case(name):
    recipe = replace(make_recipe(steps=3, **RECIPES[name]), resize=CROP)
    images = Digits(digits(CROP)[0][:40])
    labels = LabelSets.of(SETS) if recipe.loss.startswith("sigmoid") else digits()[1][:40]
    return recipe, images, labels


def plain(model, recipe, images, labels):
    """The same training in a few lines of torch, whole batches at once."""
    kernels = [p for p in model.parameters() if p.ndim == 4]
    others = [p for p in model.parameters() if p.ndim != 4]
    decay = recipe.weight_decay
    groups = [
        {"params": kernels, "weight_decay": decay},
        {"params": others, "weight_decay": decay if recipe.decayed == "all" else 0},
    ]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, betas=recipe.betas)
    else:
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=recipe.momentum)
    table = np.zeros((len(images), CLASSES), np.float32)
    for row, classes in enumerate(SETS if isinstance(labels, LabelSets) else labels[:, None]):
        table[row, classes] = 1
    plan = batch_plan(recipe, len(images), 0)
    model.train()
    for step in range(recipe.schedule.steps):
        batch = plan.batch(step)
        x = torch.from_numpy(images.images[batch.indices]).permute(0, 3, 1, 2) / 127.5 - 1
        x = torch.where(torch.from_numpy(batch.flip)[:, None, None, None], x.flip(3), x)
        y = torch.from_numpy(table[batch.indices])
        x, y = (batch.lam * v + (1 - batch.lam) * v[batch.mix] for v in (x, y))
        logits = model(x)
        if recipe.loss.startswith("sigmoid"):
            log_p, log_q = (torch.nn.functional.logsigmoid(s * logits) for s in (1, -1))
            losses = -(y * log_p + (1 - y) * log_q).sum(1)
        else:
            losses = -(y * logits.log_softmax(1)).sum(1)
        optimizer.zero_grad()
        losses.mean().backward()
        if recipe.clip_norm:
            norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
            for p in model.parameters():
                p.grad *= min(1, recipe.clip_norm / float(norm))
        for group in optimizer.param_groups:
            group["lr"] = recipe.schedule.lr_at(step)
        optimizer.step()
    return model


@pytest.mark.parametrize("name", RECIPES)
def test_equals_plain_torch(name):
    recipe, images, labels = make_case(name)
    model = make_model()
    before = weights_of(model)
    train(model, recipe, images, labels, TrainingConfig(micro_batch=3))
    expected = plain(make_model(), recipe, images, labels)
    for key, found in weights_of(model).items():
        wanted = weights_of(expected)[key]
        moved = (wanted - before[key]).norm()
        assert (found - wanted).norm() <= 1e-2 * moved + 1e-6, key


@pytest.mark.parametrize("name", RECIPES)
def test_resume_is_bit_for_bit(name, tmp_path):
    recipe, images, labels = make_case(name)
    whole = make_model()
    train(whole, recipe, images, labels, TrainingConfig(checkpoint_every=1), folder=tmp_path)
    (tmp_path / "step-00000003.safetensors").unlink()
    start = latest_checkpoint(tmp_path)
    assert start.step == 2
    other = make_model(seed=9)
    train(other, recipe, images, labels, folder=tmp_path, start=start)
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(other)[name]), name


def test_state_of_adamw_by_name(tmp_path):
    recipe, images, labels = make_case("adamw")
    train(make_model(), recipe, images, labels, folder=tmp_path)
    saved = latest_checkpoint(tmp_path)
    names = {name for name, _ in make_model().named_parameters()}
    kinds = ("model", "exp_avg", "exp_avg_sq")
    assert set(saved.state) == {f"{kind}.{name}" for kind in kinds for name in names}
    assert saved.meta["loop"]["updates"] == recipe.schedule.steps
    assert (saved.state["exp_avg_sq.stem.conv.weight"] >= 0).all()
    assert saved.state["exp_avg_sq.stem.conv.weight"].max() > 0


def test_decay_is_on_kernels_only():
    """With gradients of zero, only what decays moves."""
    recipe = make_recipe(weight_decay=0.5, decayed="kernels", lr=1.0)
    model = make_model()
    torch.nn.init.ones_(model.get_classifier().weight)
    torch.nn.init.ones_(model.get_classifier().bias)
    before = weights_of(model)
    optimizer = NamedOptimizer(model, recipe)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.set_rate(1.0)
    optimizer.torch.step()
    for name, parameter in model.named_parameters():
        factor = 0.5 if name.endswith(("conv.weight", "fc.weight")) or "conv" in name else 1.0
        assert torch.equal(parameter, before[name] * factor), name


def test_clipping_returns_the_norm_and_scales_once():
    recipe = make_recipe(clip_norm=2.0)
    model = make_model()
    optimizer = NamedOptimizer(model, recipe)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert optimizer.clip() == pytest.approx(0.1 * count**0.5, rel=1e-3)
    assert optimizer.clip() == pytest.approx(2.0, rel=1e-3)
    assert NamedOptimizer(model, make_recipe()).clip() is None
