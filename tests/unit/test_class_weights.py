"""Class weights: scikit-learn's numbers, torch's loss, with MixUp, micro-batches and `freeze`."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from training import CLASSES, CROP, RESIZE, Digits, digits, make_model, make_recipe, weights_of

from bitzoo.data.loader import BatchPlan, materialize
from bitzoo.errors import UsageError
from bitzoo.inference.features import compute_features
from bitzoo.training.hyperrule import hyperrule
from bitzoo.training.linear_probe import train_head
from bitzoo.training.losses import balanced_weights
from bitzoo.training.recipe import Recipe
from bitzoo.training.recipe_text import explain
from bitzoo.training.trainer import train
from bitzoo.training.training_config import TrainingConfig

BALANCED = {"class_weights": "balanced"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uneven():
    """Digits of which class c has 2 + 3 c images."""
    images, labels = digits()
    chosen = np.concatenate([np.flatnonzero(labels == c)[: 2 + 3 * c] for c in range(CLASSES)])
    return Digits(images[chosen]), labels[chosen]


def test_balanced_is_scikit_learns():
    labels = np.repeat(np.arange(4), [1, 5, 10, 84])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 4), expected, rtol=1e-15)
    assert balanced_weights(labels, 4)[labels].mean() == pytest.approx(1, abs=1e-15)


def test_a_class_without_images_weighs_nothing_and_is_not_counted():
    assert balanced_weights(np.array([0, 0, 0, 2]), 3).tolist() == [4 / 6, 0, 2]


def expected_weights(uneven, recipe, weight):
    """The loss of each step and the weights after it, by torch's own loss and optimizer."""
    pixels, labels = uneven
    model = make_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=recipe.momentum)
    plan = BatchPlan(len(labels), recipe.batch_size, RESIZE, CROP, True, recipe.mixup_alpha, seed=0)
    losses = []
    for step in range(recipe.schedule.steps):
        images, targets = materialize(
            plan.batch(step), slice(None), pixels, labels, CLASSES, CROP,
            memory_format=torch.channels_last,
        )  # fmt: skip
        loss = F.cross_entropy(model(images), targets, weight=weight)  # the mean, as torch does it
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = recipe.schedule.lr_at(step)
        optimizer.step()
        losses.append(loss.item())
    return losses, weights_of(model)


@pytest.mark.parametrize("mixup", [0.0, 0.3])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_training_is_torchs_weighted_cross_entropy(uneven, mixup, micro_batch):
    recipe = make_recipe(steps=3, lr=0.01, mixup=mixup, loss_options=BALANCED)
    labels = uneven[1]
    weight = torch.tensor(
        compute_class_weight("balanced", classes=np.arange(CLASSES), y=labels), dtype=torch.float32
    )
    losses, expected = expected_weights(uneven, recipe, weight)
    found, model = [], make_model()
    options = TrainingConfig(micro_batch=micro_batch)
    train(
        model,
        recipe,
        uneven[0],
        uneven[1],
        options,
        on_step=lambda metrics: found.append(metrics["loss"]),
    )
    assert found == pytest.approx(losses, rel=1e-5)
    for name, tensor in expected.items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
    plain = make_model()
    train(plain, make_recipe(steps=3, lr=0.01, mixup=mixup), uneven[0], uneven[1], options)
    assert not plain.head.fc.weight.allclose(model.head.fc.weight, rtol=0.1)


@pytest.mark.parametrize("mixup", [0.0, 0.3])
def test_the_head_alone(uneven, mixup):
    _, labels = uneven
    recipe = make_recipe(steps=4, lr=0.1, mixup=mixup, loss_options=BALANCED)
    model = make_model()
    images, _ = digits(CROP)
    features = torch.from_numpy(compute_features(model, Digits(images[: len(labels)])))
    weight = torch.tensor(
        compute_class_weight("balanced", classes=np.arange(CLASSES), y=labels), dtype=torch.float32
    )
    head = torch.nn.Linear(features.shape[1], CLASSES)
    with torch.no_grad():
        head.weight.copy_(model.head.fc.weight.flatten(1))
        head.bias.copy_(model.head.fc.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=recipe.momentum)
    plan = BatchPlan(len(labels), 8, 1, 1, flip=False, mixup_alpha=mixup, seed=0)
    losses: list[float] = []
    for step in range(4):
        batch = plan.batch(step)
        x, t = features[batch.indices], F.one_hot(torch.from_numpy(labels), CLASSES).float()
        t = t[batch.indices]
        if batch.mix is not None:
            x = batch.lam * x + (1 - batch.lam) * x[batch.mix]
            t = batch.lam * t + (1 - batch.lam) * t[batch.mix]
        loss = F.cross_entropy(head(x), t, weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found: list[float] = []
    options = TrainingConfig(freeze=True)
    train_head(
        model, recipe, features, labels, options, lambda metrics: found.append(metrics["loss"])
    )
    assert found == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(model.head.fc.weight.flatten(1), head.weight, rtol=1e-4, atol=1e-6)


def test_the_recipe_records_it():
    rule = hyperrule(100, (32, 32))
    recipe = rule.override(class_weights="balanced")
    assert recipe.loss_options == BALANCED
    assert recipe.overrides == {"class_weights": {"from": None, "to": "balanced"}}
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    rows = dict(explain(recipe))
    assert rows["changed"] == "class weights from none to balanced"
    assert rows["loss"].endswith(
        "class c, with n_c of the n images of k classes, weighs n / (k n_c)"
    )
    assert dict(explain(rule))["loss"] == "softmax cross entropy"
    with pytest.raises(UsageError, match="`class_weights` must be 'balanced', found 'inverse'"):
        rule.override(class_weights="inverse")
