"""Batch normalization: statistics, training, recomputation, several processes.

The oracle is `norm_grid.plain_forward` with autograd, and running averages written here.
"""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from norm_grid import ENDINGS, TINY, distance, images_of, make, plain_forward, random_state
from torch import nn

from bitzoo.errors import UsageError
from bitzoo.models.architecture import Architecture
from bitzoo.models.batch_norm import BatchNormReLU, statistics_kept
from bitzoo.training.activation_checkpointing import checkpoint_blocks, recompute_norms
from bitzoo.training.batch_statistics import (
    SynchronizedBatchNormReLU,
    dependence_on_micro_batch,
    require_values_to_normalize,
    synchronize_statistics,
)
from bitzoo.training.gradient_accumulation import standardize_once

LABELS = torch.tensor([3, 0, 4, 1])
WORLD = 2


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train_once(model, images, labels=LABELS):
    """Return the gradients of one batch; running statistics of the model change."""
    model.train().zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def statistics_of(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def worst(found, expected):
    assert found.keys() == expected.keys()
    return max(distance(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_training_step_equals_autograd_over_plain_operations(ending):
    model, images = make(TINY + ending), images_of(4)
    form = model.architecture
    state = {name: t.clone().requires_grad_() for name, t in model.state_dict().items()}
    seen: dict[str, tuple[Any, ...]] = {}
    logits = plain_forward(
        state,
        images,
        norm=form.norm,
        standardized=form.weight_standardization,
        training=True,
        seen=seen,
    )
    nn.functional.cross_entropy(logits, LABELS).backward()
    expected = {name: t.grad for name, t in state.items() if t.grad is not None}
    assert worst(train_once(model, images), expected) < 1e-10
    assert len(seen) == (3 * 5 + 1 if form.norm == "batch" else 0)
    after = statistics_of(model)
    for name, (mean, biased, count) in seen.items():
        unbiased = biased * count / (count - 1)
        before = [state[f"{name}.{part}"].detach() for part in ("running_mean", "running_var")]
        assert distance(after[f"{name}.running_mean"], 0.99 * before[0] + 0.01 * mean) < 1e-12
        assert distance(after[f"{name}.running_var"], 0.99 * before[1] + 0.01 * unbiased) < 1e-12


def test_evaluation_changes_nothing_and_uses_running_statistics():
    model, images = make(TINY + "-BN"), images_of()
    before = statistics_of(model)
    together = model(images)
    alone = torch.cat([model(images[[row]]) for row in range(len(images))])
    assert distance(alone, together) < 1e-12  # no image depends on the others
    assert worst(statistics_of(model), before) == 0
    assert distance(model.train()(images), together) > 0.1


def test_frozen_layers_use_and_keep_running_statistics_in_training():
    model, images = make(TINY + "-BN"), images_of(4)
    expected, before = model.forward_features(images), statistics_of(model)
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    found = train_once(model, images)
    assert sorted(found) == ["head.fc.bias", "head.fc.weight"]
    assert worst(statistics_of(model), before) == 0
    assert torch.equal(model.train().forward_features(images), expected)
    unfrozen = model.norm.weight.requires_grad_(True)
    train_once(model, images)
    changed = {n for n, b in statistics_of(model).items() if not torch.equal(b, before[n])}
    assert changed == {"norm.running_mean", "norm.running_var"}
    assert unfrozen.grad is not None


def both(model):
    recompute_norms(model)
    checkpoint_blocks(model, units=1)


RECOMPUTED = {
    "norms": recompute_norms,
    "blocks": checkpoint_blocks,
    "both": both,
    "units": lambda model: model.set_grad_checkpointing(),
}


@pytest.mark.parametrize("ending", ENDINGS[1:])
@pytest.mark.parametrize("how", RECOMPUTED)
def test_recomputation_gives_the_same_gradients_and_counts_each_batch_once(how, ending):
    plain, images = make(TINY + ending), images_of(4)
    model = copy.deepcopy(plain)
    RECOMPUTED[how](model)
    for _ in range(2):
        assert worst(train_once(model, images), train_once(plain, images)) < 1e-12
    # `worst` divides by norms, which are not zero: the statistics are those of two batches.
    if statistics_of(plain):
        assert worst(statistics_of(model), statistics_of(plain)) < 1e-15
    twin = pickle.loads(pickle.dumps(model))
    assert worst(train_once(twin, images), train_once(plain, images)) < 1e-12


def test_recomputation_under_frozen_norms():
    model, images = make(TINY + "-BN"), images_of(4)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("stem", "stages.0")))
    plain = copy.deepcopy(model)
    recompute_norms(model)
    assert worst(train_once(model, images), train_once(plain, images)) < 1e-12
    assert worst(statistics_of(model), statistics_of(plain)) < 1e-15


@pytest.mark.slow
@pytest.mark.parametrize("how", ["norms", "blocks", "units"])
def test_compiled_training_is_the_same(how):
    plain, images = make(TINY + "-BN"), images_of(4)
    model = copy.deepcopy(plain)
    RECOMPUTED[how](model)
    model.train()
    compiled = torch.compile(model.forward_features, backend="eager")
    expected = train_once(plain, images)
    logits = model.forward_head(compiled(images))
    nn.functional.cross_entropy(logits, LABELS).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    assert worst(found, expected) < 1e-12
    assert worst(statistics_of(model), statistics_of(plain)) < 1e-15


@pytest.mark.parametrize("ending", ["-BN", "-noWS", "-BN-noWS"])
def test_micro_batches_with_shared_kernels(ending):
    plain, images = make(TINY + ending), images_of(4)
    model = copy.deepcopy(plain)
    kernels = standardize_once(model)

    def accumulate(network, step):
        network.train().zero_grad()
        with step:
            for rows in torch.arange(4).chunk(2):
                logits = network(images[rows])
                (nn.functional.cross_entropy(logits, LABELS[rows]) / 2).backward()
        return {name: p.grad.clone() for name, p in network.named_parameters()}

    expected = accumulate(plain, torch.enable_grad())
    assert worst(accumulate(model, kernels), expected) < 1e-12
    whole = train_once(make(TINY + ending), images)
    # What the sentence warns of: with batch normalization, halves are not the whole.
    assert (worst(expected, whole) > 0.01) == ("-BN" in ending)


def test_passes_that_are_no_step_leave_statistics_alone():
    model, images = make(TINY + "-BN").train(), images_of(4)
    before, usual = statistics_of(model), copy.deepcopy(model)(images)
    with statistics_kept(model):
        assert torch.equal(model(images), usual)
    assert worst(statistics_of(model), before) == 0
    with pytest.raises(MemoryError), statistics_kept(model):
        raise MemoryError
    model(images)
    assert worst(statistics_of(model), before) > 1e-4


def test_a_new_network_has_new_statistics():
    model = make(TINY + "-BN-noWS")
    model.init_weights(torch.Generator().manual_seed(0))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, torch.full_like(buffer, name.endswith("running_var")))
    kernel = model.get_parameter("stages.1.blocks.0.conv2.weight")
    assert kernel.std().item() == pytest.approx((2 / kernel[0].numel()) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("norm", "batch", "micro", "processes", "said"),
    [
        ("group", 512, 8, 1, None),
        ("batch", 512, 512, 1, "over the whole batch of 512 images: smaller"),
        ("batch", 512, 256, 2, "over the whole batch of 512 images: smaller"),
        ("batch", 512, 8, 1, "over the 8 images that are computed at once, not over the batch"),
        ("batch", 512, 8, 4, "32 images that are computed at once, 8 in each of 4 processes, not"),
    ],
)
def test_what_depends_on_the_micro_batch_is_said(norm, batch, micro, processes, said):
    form = Architecture((1, 1, 1, 1), norm=norm)
    found = dependence_on_micro_batch(form, batch, micro, processes)
    assert (found is None) if said is None else said in found
    if said and "not over" in said:
        assert f"`micro_batch={micro}`" in found


@pytest.mark.parametrize(
    ("ending", "crop", "images", "frozen", "fine"),
    [
        ("-BN", 32, 1, False, False),
        ("-BN", 32, 1, True, True),
        ("-BN", 32, 2, False, True),
        ("-BN", 33, 1, False, True),
        ("", 32, 1, False, True),
    ],
)
def test_a_single_value_cannot_be_normalized(ending, crop, images, frozen, fine):
    model = make(TINY + ending).train()
    form = model.architecture
    if fine:
        require_values_to_normalize(form, crop, images, is_frozen=frozen)
    else:
        with pytest.raises(UsageError, match="at least two values for a mean, found one"):
            require_values_to_normalize(form, crop, images, is_frozen=frozen)
    if not frozen:  # torch agrees
        try:
            model(images_of(images, crop))
        except ValueError as error:
            assert not fine, error  # noqa: PT017 - it need not raise
        else:
            assert fine


def share_of(rank):
    """Rows of a process: three and one, so that the parts differ."""
    return slice(0, 3) if rank == 0 else slice(3, 4)


def train_as(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    found = {}
    for how in ("plain", "both"):
        model = make(TINY + "-BN").train()
        synchronize_statistics(model)
        RECOMPUTED.get(how, lambda model: None)(model)
        rows = share_of(rank)
        for _ in range(2):
            model.zero_grad()
            logits = model(images_of(4)[rows])
            nn.functional.cross_entropy(logits, LABELS[rows], reduction="sum").div(4).backward()
        found[how] = {name: p.grad for name, p in model.named_parameters()}, statistics_of(model)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_synchronized_statistics_equal_one(tmp_path):
    torch.multiprocessing.spawn(train_as, (str(tmp_path),), nprocs=WORLD)
    model = make(TINY + "-BN")
    train_once(model, images_of(4))
    expected = train_once(model, images_of(4))
    per_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for how in ("plain", "both"):
        (one, first), (other, second) = (found[how] for found in per_rank)
        assert worst({name: one[name] + other[name] for name in one}, expected) < 1e-11
        assert worst(first, statistics_of(model)) < 1e-14
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_synchronizing_changes_the_layers_in_place_and_back():
    model = make(TINY + "-BN")
    names, images = list(model.state_dict()), images_of()
    expected = model(images)
    synchronize_statistics(model)
    norms = [m for m in model.modules() if isinstance(m, BatchNormReLU)]
    assert {type(norm) for norm in norms} == {SynchronizedBatchNormReLU}
    assert len(norms) == 16
    assert list(model.state_dict()) == names
    assert torch.equal(model(images), expected)  # evaluation needs no other process
    synchronize_statistics(model, enable=False)
    assert {type(norm) for norm in norms} == {BatchNormReLU}
    group = make(TINY)
    synchronize_statistics(group)
    assert [type(m) for m in group.modules()] == [type(m) for m in make(TINY).modules()]


def test_random_states_differ_from_new_ones():
    """The tests above could not fail with running statistics of 0 and 1."""
    state = random_state(Architecture.parse(TINY + "-BN"))
    assert state["norm.running_mean"].std() > 0.4
    assert state["norm.running_var"].mean() > 1.2
