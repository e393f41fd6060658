"""The memory options of training give the gradients of plain autograd, and store less.

The oracle is autograd over plain modules, whose numbers tests/oracle compares with other
implementations.
"""

import copy
import functools
import pickle
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from checkpoints import TINY, as_timm, make_checkpoint
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from bitzoo.errors import UsageError
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.models.bit import BiT, fold
from bitzoo.models.layers import Unit, standardize_kernel
from bitzoo.training import distributed
from bitzoo.training.activation_checkpointing import checkpoint_blocks, recompute_norms
from bitzoo.training.distributed import GradientSum
from bitzoo.training.gradient_accumulation import standardize_once

DEEPER = (3, 1, 2, 1)
CLASSES = 10
BATCH = 4
WORLD = 2
LABELS = torch.tensor([3, 0, 9, 4])


@pytest.fixture(autouse=True)
def _one_thread(request):
    """Use one thread: maps of a few pixels are slower on two, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if request.node.get_closest_marker("full_size") else 1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def weights(depths):
    checkpoint = make_checkpoint(depths, 0.5, CLASSES)
    return {name: torch.from_numpy(array) for name, array in as_timm(checkpoint).items()}


def make_model(depths=TINY, dtype=torch.float64, **options):
    model = BiT(Architecture(depths, 0.5), CLASSES, **options)
    model.load_state_dict(weights(depths))
    return model.to(dtype).train()


def make_images(size=33, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(BATCH, 3, size, size, generator=generator, dtype=dtype) * 2 - 1


def loss_of(model, images, labels=LABELS):
    return nn.functional.cross_entropy(model(images), labels)


def step(model, images, autocast=False):
    """Return the loss and gradients of a batch."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        loss = loss_of(model, images)
    loss.backward()
    return loss.detach(), gradients_of(model)


def accumulate(model, images, parts=2, one_step=nullcontext):
    """Return the gradients of a batch that is run in equal parts."""
    model.zero_grad()
    with one_step():
        for rows in torch.arange(BATCH).chunk(parts):
            (loss_of(model, images[rows], LABELS[rows]) / parts).backward()
    return gradients_of(model)


def gradients_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def worst(found, expected):
    assert found.keys() == expected.keys()
    return max(relative(found[name], expected[name]) for name in expected)


def saved_bytes(model, forward):
    """Return the bytes that `forward` saves for backward: all, and all but parameters."""
    held, sizes = [], {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        held.append(tensor)  # so that no other storage reuses its address
        sizes[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    everything = sum(sizes.values())
    for parameter in model.parameters():
        sizes.pop(parameter.untyped_storage()._cdata, None)
    return everything, sum(sizes.values()), result


def saved_maps(model, images):
    return saved_bytes(model, lambda: loss_of(model, images))[1]


def tally(modules):
    """Return a list that grows by one with each forward pass of one of the modules."""
    calls = []
    for module in modules:
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def units_of(model):
    return [module for module in model.modules() if isinstance(module, Unit)]


def recompute_and_checkpoint(model):
    recompute_norms(model)
    checkpoint_blocks(model, units=2)


def recompute_and_checkpoint_units(model):
    recompute_norms(model)
    model.set_grad_checkpointing()


COMBINATIONS = [
    recompute_norms,
    checkpoint_blocks,
    recompute_and_checkpoint,
    recompute_and_checkpoint_units,
]


@pytest.mark.parametrize("switch", COMBINATIONS)
class TestEveryCombination:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)]
    )
    def test_gives_loss_and_gradients_of_plain_autograd(self, switch, dtype, tolerance):
        model, images = make_model(DEEPER, dtype), make_images(dtype=dtype)
        expected_loss, expected = step(model, images)
        switch(model)
        loss, found = step(model, images)
        assert loss.item() == pytest.approx(expected_loss.item(), rel=tolerance)
        assert worst(found, expected) < tolerance

    def test_trains_under_autocast(self, switch):
        model, images = make_model(dtype=torch.float32), make_images(dtype=torch.float32)
        _, exact = step(model, images)
        expected_loss, expected = step(model, images, autocast=True)
        switch(model)
        loss, found = step(model, images, autocast=True)
        assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-2)
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        # The same bfloat16 operations, so much closer to each other than to float32.
        assert worst(found, expected) < 1e-2
        assert worst(expected, exact) > 5e-2

    def test_leaves_evaluation_alone(self, switch):
        model, images = make_model(), make_images()
        with torch.no_grad():
            expected = model(images)
        plain = saved_maps(model.eval(), images)
        switch(model)
        assert saved_maps(model, images) == plain
        assert torch.equal(model(images), expected)
        assert torch.equal(fold(model)(images), fold(make_model())(images))
        with torch.no_grad():
            assert torch.equal(model.train()(images), expected)


class TestRecomputeNorms:
    @pytest.mark.parametrize("output_stride", [8, 32])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_strides_dilations_and_memory_formats(self, output_stride, layout):
        model = make_model((2, 1, 1, 2), output_stride=output_stride).to(memory_format=layout)
        images = make_images().contiguous(memory_format=layout).requires_grad_()
        _, expected = step(model, images)
        expected_image, images.grad = images.grad, None
        recompute_norms(model)
        _, found = step(model, images)
        assert worst(found, expected) < 1e-10
        assert relative(images.grad, expected_image) < 1e-10

    @pytest.mark.parametrize(
        "frozen",
        [
            lambda name: "norm" in name,
            lambda name: "conv" in name,
            lambda name: "norm2" in name or "conv3" in name,
            lambda name: name.startswith(("stem", "stages.0", "stages.1.blocks.0.norm1")),
            lambda name: not name.startswith("head"),
        ],
        ids=["norms", "kernels", "some of each", "first stages", "all but the head"],
    )
    def test_frozen_parameters_get_no_gradient_and_change_no_other(self, frozen):
        model, images = make_model(), make_images()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen(name))
        _, expected = step(model, images)
        recompute_norms(model)
        _, found = step(model, images)
        assert 0 < len(found) < len(list(model.parameters()))
        assert worst(found, expected) < 1e-10

    def test_halves_what_is_saved(self):
        model, images = make_model(DEEPER), make_images(96)
        plain = saved_maps(model, images)
        recompute_norms(model)
        assert saved_maps(model, images) < 0.45 * plain
        recompute_norms(model, enable=False)
        assert saved_maps(model, images) == plain

    def test_saves_half_precision_under_autocast(self):
        model, images = make_model(dtype=torch.float32), make_images(96, dtype=torch.float32)
        recompute_norms(model)
        full = saved_maps(model, images)
        with torch.autocast("cpu", torch.bfloat16):
            assert saved_maps(model, images) < 0.6 * full

    def test_a_weight_changed_before_backward_is_an_error(self):
        model, images = make_model(), make_images()
        recompute_norms(model)
        loss = loss_of(model, images)
        with torch.no_grad():
            model.get_parameter("stages.2.blocks.0.conv2.weight").add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_survives_copies_and_can_be_undone(self):
        model, images = make_model(), make_images()
        _, expected = step(model, images)
        recompute_norms(model)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(units_of(twin)[0]) is type(units_of(model)[0]) is not Unit
            assert twin.state_dict().keys() == weights(TINY).keys()
            assert worst(step(twin, images)[1], expected) < 1e-10
        recompute_norms(model, enable=False)
        assert [type(m) for m in model.modules()] == [type(m) for m in make_model().modules()]

    def test_compiles_in_one_graph(self):
        model, images = make_model(), make_images()
        _, expected = step(model, images)
        recompute_norms(model)
        checkpoint_blocks(model)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        model.zero_grad()
        loss_of(compiled, images).backward()
        assert worst(gradients_of(model), expected) < 1e-10


class TestCheckpointBlocks:
    @pytest.mark.parametrize(("units", "segments"), [(1, 7), (2, 5), (6, 4)])
    def test_stores_the_input_of_each_segment(self, units, segments):
        model, images = make_model(DEEPER), make_images()
        images_and_rest = saved_maps(model, images)
        model.set_grad_checkpointing()
        unit_inputs = saved_maps(model, images)
        checkpoint_blocks(model, units=units)
        if units == 1:
            assert saved_maps(model, images) == unit_inputs < images_and_rest
        else:
            assert saved_maps(model, images) < unit_inputs
        calls = tally(unit.conv1 for unit in units_of(model))
        inputs = []
        for stage in model.stages:
            for unit in list(stage.blocks)[::units]:
                unit.register_forward_pre_hook(lambda _, args: inputs.append(args[0].data_ptr()))
        step(model, images)
        assert len(calls) == 2 * sum(DEEPER)
        # Each segment is recomputed from the same stored tensor; the last segment comes first.
        assert len(inputs) == 2 * segments
        assert inputs[segments:] == inputs[:segments][::-1]

    def test_can_be_undone(self):
        model, images = make_model(), make_images()
        plain = saved_maps(model, images)
        checkpoint_blocks(model)
        assert saved_maps(model, images) < plain
        checkpoint_blocks(model, enable=False)
        assert saved_maps(model, images) == plain

    def test_refuses_empty_segments(self):
        with pytest.raises(UsageError, match=r"at least 1 unit, found `units=0`"):
            checkpoint_blocks(make_model(), units=0)


class TestStandardizeOnce:
    @pytest.mark.parametrize(
        ("switch", "dtype", "tolerance"),
        [
            (None, torch.float64, 1e-12),
            (None, torch.float32, 1e-6),
            (recompute_norms, torch.float64, 1e-12),
            (recompute_norms, torch.float32, 1e-6),
            (recompute_and_checkpoint, torch.float64, 1e-12),
        ],
    )
    def test_equals_plain_accumulation(self, switch, dtype, tolerance):
        model, images = make_model(dtype=dtype), make_images(dtype=dtype)
        expected = accumulate(model, images)
        if switch:
            switch(model)
        kernels = standardize_once(model)
        assert worst(accumulate(model, images, one_step=lambda: kernels), expected) < tolerance

    def test_kernels_follow_the_weights(self):
        model, images = make_model(), make_images()
        kernels = standardize_once(model)
        accumulate(model, images, one_step=lambda: kernels)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 10)
        found = accumulate(model, images, one_step=lambda: kernels)
        assert worst(found, accumulate(model, images)) < 1e-12

    @pytest.mark.parametrize("switch", [None, recompute_and_checkpoint])
    def test_standardizes_once_a_step(self, switch, monkeypatch):
        model, images = make_model(), make_images()
        calls = []

        def spy(weight):
            calls.append(weight)
            return standardize_kernel(weight)

        for module in (
            "models.layers",
            "training.gradient_accumulation",
            "training.activation_checkpointing",
        ):
            monkeypatch.setattr(f"bitzoo.{module}.standardize_kernel", spy)
        if switch:
            switch(model)
        kernels = standardize_once(model)
        accumulate(model, images, one_step=lambda: kernels)
        assert len(calls) == 1 + 4 * 4

    def test_weights_get_their_gradients_at_the_end(self):
        model, images = make_model(), make_images()
        kernels = standardize_once(model)
        kernels.begin_step()
        loss_of(model, images).backward()
        late = {name for name, p in model.named_parameters() if p.grad is None}
        assert late == {name for name in weights(TINY) if "conv" in name}
        kernels.end_step()
        _, expected = step(make_model(), images)
        assert worst(gradients_of(model), expected) < 1e-12
        with kernels:  # without zero_grad: gradients are added, as in a plain backward pass
            loss_of(model, images).backward()
        assert worst(gradients_of(model), {k: 2 * v for k, v in expected.items()}) < 1e-12

    def test_an_abandoned_step_has_no_effect(self):
        model, images = make_model(), make_images()
        expected = accumulate(model, images)
        kernels = standardize_once(model)

        def run_out_of_memory():
            with kernels:
                loss_of(model, images).backward()
                raise MemoryError

        model.zero_grad()
        with pytest.raises(MemoryError):
            run_out_of_memory()
        assert not any("conv" in name for name in gradients_of(model))
        assert worst(accumulate(model, images), expected) < 1e-12
        assert worst(accumulate(model, images, one_step=lambda: kernels), expected) < 1e-12

    def test_frozen_kernels(self):
        model, images = make_model(), make_images()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("conv2" not in name)
        expected = accumulate(model, images)
        recompute_norms(model)
        kernels = standardize_once(model)
        assert worst(accumulate(model, images, one_step=lambda: kernels), expected) < 1e-12

    def test_a_pass_without_gradients_beside_one_with_under_autocast(self):
        # Autocast caches half-precision copies of leaves; one made without gradient must not serve
        # the pass that needs it.
        model, images = make_model(dtype=torch.float32), make_images(dtype=torch.float32)
        _, expected = step(model, images, autocast=True)
        recompute_norms(model)
        kernels = standardize_once(model)
        model.zero_grad()
        with kernels, torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, images)
            units_of(model)[0].eval()
            second = loss_of(model, images)
            (loss / 2 + second / 2).backward()
        assert worst(gradients_of(model), expected) < 1e-2


def train_as(rank, folder):
    """Run one of WORLD processes: sum gradients in every way, and save them in `folder`."""
    torch.set_num_threads(1)
    distributed.BUCKET_BYTES = 2**20  # several buckets, even for this small model
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    images, found = make_images(), {}
    model = make_model()
    recompute_norms(model)
    kernels = standardize_once(model)
    for name, followed in (("at the end", False), ("on the way", True)):
        model.zero_grad()
        with GradientSum(model) as gradients:
            with kernels:
                rows = range(rank, BATCH, WORLD)
                for row in rows:
                    if followed and row == rows[-1]:
                        gradients.follow()
                    (loss_of(model, images[[row]], LABELS[[row]]) / BATCH).backward()
            gradients.finish()
        found[f"rows shared, {name}"] = gradients_of(model)

    model.zero_grad()
    with GradientSum(model) as gradients:
        if rank == 0:  # the other process has no rows, and no gradients
            gradients.follow()
            loss_of(model, images).backward()
        gradients.finish()
    found["rows of one process"] = gradients_of(model)

    model = make_model()
    recompute_norms(model)
    wrapped = DistributedDataParallel(model)
    loss_of(wrapped, images[rank::WORLD], LABELS[rank::WORLD]).backward()
    found["DDP"] = gradients_of(model)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


class TestSeveralProcesses:
    @pytest.mark.slow
    def test_two_processes_give_the_gradients_of_one(self, tmp_path):
        torch.multiprocessing.spawn(train_as, (str(tmp_path),), nprocs=WORLD)
        _, expected = step(make_model(), make_images())
        for rank in range(WORLD):
            found = torch.load(tmp_path / f"{rank}.pt")
            assert len(found) == 4
            for name, gradient in found["rows shared, at the end"].items():
                assert torch.equal(found["rows shared, on the way"][name], gradient)
            for gradients in found.values():
                assert worst(gradients, expected) < 1e-12

    def test_one_process_needs_no_group(self):
        model, images = make_model(), make_images()
        _, expected = step(model, images)
        with GradientSum(model) as gradients:
            gradients.follow()
            gradients.finish()
        assert worst(gradients_of(model), expected) == 0


class TestR50x1:
    """The promised savings: bytes that a step stores at 128 px, batch 32, against plain modules."""

    def make(self):
        return BiT(ARCHITECTURES["R50x1"], CLASSES).train()

    def test_saved_bytes(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():  # sizes without values
            model, images = self.make(), torch.empty(32, 3, 128, 128)
            labels = torch.zeros(32, dtype=torch.long)

            def saved():
                return saved_bytes(model, lambda: loss_of(model, images, labels))[:2]

            plain = saved()
            recompute_norms(model)
            norms = saved()
            with standardize_once(model):
                once = saved()
            checkpoint_blocks(model)
            both = saved()
            recompute_norms(model, enable=False)
            blocks = saved()
        # With the parameters, like everything else that is saved, and without them.
        assert plain == (1_000_320_260, 906_327_812)
        for k in range(2):
            assert norms[k] <= 0.5 * plain[k]
            assert once[k] <= 0.55 * plain[k]
            assert blocks[k] <= 0.16 * plain[k]
            assert both[k] <= 0.105 * plain[k]

    @pytest.mark.full_size
    def test_saves_less_for_the_same_loss_and_gradients(self):
        import timm

        # With another library's float32, only the loss could be compared: where rounding differs,
        # some ReLUs flip, and gradients move by 1e-3.
        model, generator = self.make(), torch.Generator().manual_seed(0)
        model.init_weights(generator)
        nn.init.normal_(model.head.fc.weight, std=0.01, generator=generator)
        images = torch.rand(32, 3, 128, 128, generator=generator) * 2 - 1
        labels = torch.arange(32) % CLASSES

        def measure():
            model.zero_grad()
            *saved, loss = saved_bytes(model, lambda: loss_of(model, images, labels))
            loss.backward()
            return saved, loss.item(), gradients_of(model)

        plain, expected_loss, expected = measure()
        peer = timm.create_model("resnetv2_50x1_bit", num_classes=CLASSES).train()
        assert list(saved_bytes(peer, lambda: loss_of(peer, images, labels))[:2]) == plain
        for switch, at_most in ((recompute_norms, 0.55), (checkpoint_blocks, 0.25)):
            switch(model)
            saved, loss, gradients = measure()
            assert all(a <= at_most * b for a, b in zip(saved, plain, strict=True))
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            assert worst(gradients, expected) < 1e-5
