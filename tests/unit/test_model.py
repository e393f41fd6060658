"""The network by itself: structure, standardization, folding, and every way torch may run it.

Whether its numbers are Google's is tests/oracle/test_model_vs_peers.py's question.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from checkpoints import TINY, as_timm, make_checkpoint
from torch import nn

from bitzoo.errors import ArchitectureError, FoldedModelError, LayoutError, UsageError
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.models.bit import (
    REFERENCE_EPS,
    BiT,
    FeatureExtractor,
    StdConv2d,
    adapt_stem_kernel,
    fold,
    standardize_kernel,
)
from bitzoo.models.layers import GroupNormReLU, Unit, ZeroConv2d

SMALL = Architecture(TINY, 0.5)
DEEPER = (2, 1, 1, 1)
CLASSES = 10


def make_model(depths=TINY, num_classes=CLASSES, **options):
    model = BiT(Architecture(depths, 0.5), num_classes, **options)
    checkpoint = make_checkpoint(depths, 0.5, num_classes)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in as_timm(checkpoint).items()})
    return model.eval()


def make_images(size=64, batch=2, channels=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, size, size, generator=generator, dtype=dtype) * 2 - 1


def relative(found, expected):
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm()).item()


class TestStandardizeKernel:
    def test_worked_example(self):
        # Filter 1: mean 2, variance 1. Filter 2: mean 4, variance 4. Filter 3 is constant.
        weight = torch.tensor([[1.0, 3.0], [2.0, 6.0], [5.0, 5.0]]).reshape(3, 2, 1, 1)
        expected = torch.tensor([[-1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]]).reshape(3, 2, 1, 1)
        torch.testing.assert_close(standardize_kernel(weight), expected, rtol=0, atol=1e-6)

    def test_eps_is_added_to_the_variance(self):
        weight = torch.tensor([-1e-5, 1e-5], dtype=torch.float64).reshape(1, 1, 1, 2)
        found = standardize_kernel(weight)  # variance 1e-10 and eps 1e-10: 1e-5 / sqrt(2e-10)
        torch.testing.assert_close(found.flatten()[1].item(), 0.5**0.5, rtol=1e-12, atol=0)
        found = standardize_kernel(weight, eps=3e-10)
        torch.testing.assert_close(found.flatten()[1].item(), 0.5, rtol=1e-12, atol=0)
        assert REFERENCE_EPS == 1e-10

    @pytest.mark.parametrize("std", [1e-3, 1.0])
    def test_equals_the_formula_in_numpy(self, std):
        kernel = np.random.default_rng(1).normal(3 * std, std, (5, 4, 3, 2))
        mean = kernel.mean((1, 2, 3), keepdims=True)
        variance = kernel.var((1, 2, 3), keepdims=True)
        expected = torch.from_numpy((kernel - mean) / np.sqrt(variance + 1e-10))
        found = standardize_kernel(torch.from_numpy(kernel))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
        single = standardize_kernel(torch.from_numpy(kernel).float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=3e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, dtype):
        weight = (torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(0)) + 4).to(
            dtype
        )
        found = standardize_kernel(weight)
        assert found.dtype == dtype
        assert torch.equal(found, standardize_kernel(weight.float()).to(dtype))

    def test_does_not_change_its_input(self):
        weight = torch.randn(4, 3, 3, 3)
        before = weight.clone()
        standardize_kernel(weight)
        assert torch.equal(weight, before)

    def test_keeps_the_memory_format(self):
        weight = torch.randn(4, 32, 3, 3, generator=torch.Generator().manual_seed(0))
        found = standardize_kernel(weight.contiguous(memory_format=torch.channels_last))
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, standardize_kernel(weight), rtol=0, atol=2e-6)
        assert standardize_kernel(weight).is_contiguous()

    def test_autocast_does_not_affect_it(self):
        weight = torch.randn(4, 32, 3, 3) + 100
        expected = standardize_kernel(weight)
        with torch.autocast("cpu", torch.bfloat16):
            found = standardize_kernel(weight)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)

    def test_refuses_a_matrix(self):
        with pytest.raises(LayoutError, match=r"must have 4 dimensions .* found shape \(10, 4\)"):
            standardize_kernel(torch.zeros(10, 4))


class TestStructure:
    @pytest.mark.parametrize("num_classes", [CLASSES, 0])
    def test_names_and_shapes_are_timms(self, num_classes):
        expected = as_timm(make_checkpoint(DEEPER, 0.5, num_classes))
        model = BiT(Architecture(DEEPER, 0.5), num_classes)
        found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        assert found == {name: array.shape for name, array in expected.items()}

    @pytest.mark.parametrize(
        ("name", "classes", "params"),  # google-research/big_transfer's own counts
        [("R50x1", 1000, 25_549_352), ("R152x4", 21843, 1_107_299_923)],
    )
    def test_published_sizes_build_without_storage(self, name, classes, params):
        with torch.device("meta"):
            model = BiT(ARCHITECTURES[name], classes)
        assert all(parameter.is_meta for parameter in model.parameters())
        assert sum(parameter.numel() for parameter in model.parameters()) == params

    def test_starts_with_a_zero_head_and_plain_norms(self):
        torch.manual_seed(0)
        model = BiT(SMALL, CLASSES)
        assert torch.equal(model(make_images()), torch.zeros(2, CLASSES))
        for module in model.modules():
            if isinstance(module, GroupNormReLU):
                assert (module.num_groups, module.eps) == (32, 1e-5)
                assert torch.equal(module.weight, torch.ones_like(module.weight))
                assert torch.equal(module.bias, torch.zeros_like(module.bias))

    def test_kernels_start_he_normal(self):
        torch.manual_seed(0)
        kernel = BiT(SMALL).get_parameter("stages.3.blocks.0.conv3.weight")
        fan_in = 256
        assert kernel.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.01)
        assert abs(kernel.mean().item()) < 0.01 * (2 / fan_in) ** 0.5

    def test_weights_are_drawn_after_to_empty(self):
        with torch.device("meta"):
            model = BiT(SMALL, CLASSES)
        model.to_empty(device="cpu").init_weights(torch.Generator().manual_seed(3))
        other = BiT(SMALL, CLASSES)
        other.init_weights(torch.Generator().manual_seed(3))
        for name, tensor in other.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
        assert torch.equal(model(make_images()), torch.zeros(2, CLASSES))

    def test_the_head_can_be_replaced(self):
        model = make_model()
        pooled = model.forward_head(model.forward_features(make_images()), pre_logits=True)
        model.reset_classifier(3)
        assert model.num_classes == 3
        assert torch.equal(model(make_images()), torch.zeros(2, 3))
        assert model.get_classifier().weight.shape == (3, 1024, 1, 1)
        assert not model.head.training
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert isinstance(model.get_classifier(), nn.Identity)
        assert torch.equal(model(make_images()), pooled)

    def test_a_new_head_has_the_models_dtype(self):
        model = make_model().double()
        model.reset_classifier(3)
        assert model.get_classifier().weight.dtype == torch.float64

    def test_logits_are_a_linear_map_of_pooled_features(self):
        model = make_model()
        features = model.forward_features(make_images())
        pooled = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(pooled, features.mean((2, 3)))
        fc = model.get_classifier()
        expected = pooled @ fc.weight[:, :, 0, 0].T + fc.bias
        torch.testing.assert_close(model(make_images()), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("build", "says"),
        [
            (lambda: BiT(SMALL, -1), r"`num_classes` must be 0 \(no head\) or more, found -1"),
            (
                lambda: BiT(SMALL, output_stride=4),
                r"`output_stride` must be one of \(8, 16, 32\), found 4",
            ),
            (lambda: make_model().reset_classifier(-2), "`num_classes` must be 0 .* found -2"),
        ],
    )
    def test_refuses_impossible_numbers(self, build, says):
        with pytest.raises(ArchitectureError, match=says):
            build()

    @pytest.mark.parametrize("shape", [(3, 64, 64), (2, 64, 64, 3), (2, 1, 64, 64)])
    def test_refuses_images_of_another_layout(self, shape):
        for model in (make_model(), fold(make_model()), FeatureExtractor(SMALL)):
            with pytest.raises(LayoutError, match=r"with 3 channels, .*found shape \(") as error:
                model(torch.zeros(shape))
            assert str(shape) in str(error.value)


class TestFeatures:
    @pytest.mark.parametrize(
        ("output_stride", "reductions"),
        [(32, [2, 4, 8, 16, 32]), (16, [2, 4, 8, 16, 16]), (8, [2, 4, 8, 8, 8])],
    )
    def test_maps_have_the_stated_size(self, output_stride, reductions):
        model = make_model(output_stride=output_stride)
        info = model.feature_info
        assert info.channels() == [32, 128, 256, 512, 1024]
        assert info.reduction() == reductions
        modules = ["stem.conv", *(f"stages.{i}" for i in range(4))]
        assert [entry["module"] for entry in info] == modules
        maps = model.forward_intermediates(make_images(96))
        assert [m.shape[1] for m in maps] == info.channels()
        assert [96 // m.shape[2] for m in maps] == reductions

    def test_maps_come_in_the_requested_order(self):
        model = make_model()
        everything = model.forward_intermediates(make_images())
        for found, index in zip(
            model.forward_intermediates(make_images(), (-1, 0, 2)), (4, 0, 2), strict=True
        ):
            assert torch.equal(found, everything[index])

    def test_the_last_map_normalized_is_forward_features(self):
        model = make_model()
        (last,) = model.forward_intermediates(make_images(), [4])
        assert torch.equal(model.norm(last), model.forward_features(make_images()))

    def test_blocks_that_are_not_needed_do_not_run(self):
        model = make_model()
        model.stages[2].register_forward_pre_hook(lambda *_: pytest.fail("block 3 ran"))
        assert len(model.forward_intermediates(make_images(), (0, 2))) == 2

    @pytest.mark.parametrize("indices", [(5,), (0, -6), ()])
    def test_refuses_other_indices(self, indices):
        says = r"indices must be from 0 to 4, or from -5 to -1 .* found \("
        with pytest.raises(UsageError, match=says):
            make_model().forward_intermediates(make_images(), indices)
        with pytest.raises(UsageError, match=says):
            FeatureExtractor(SMALL, indices)

    @pytest.mark.parametrize("indices", [(0, 1, 2, 3, 4), (-2, 1), (0,)])
    def test_extractor_gives_the_classifiers_maps(self, indices):
        model = make_model(output_stride=16)
        extractor = FeatureExtractor(model.architecture, indices, output_stride=16)
        extractor.load_state_dict({k: model.state_dict()[k] for k in extractor.state_dict()})
        expected = model.forward_intermediates(make_images(), indices)
        for found, wanted in zip(extractor(make_images()), expected, strict=True):
            assert torch.equal(found, wanted)
        channels = [m.shape[1] for m in expected]
        assert extractor.feature_info.channels() == channels
        assert extractor.feature_info.reduction() == [64 // m.shape[2] for m in expected]

    def test_extractor_contains_only_what_it_needs(self):
        names = set(FeatureExtractor(SMALL, (2, 1)).state_dict())
        full = set(make_model().state_dict())
        assert names == {n for n in full if n.startswith(("stem.", "stages.0.", "stages.1."))}
        assert set(FeatureExtractor(SMALL, (0,)).state_dict()) == {"stem.conv.weight"}


class TestFold:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_computes_the_same(self, dtype):
        model = make_model(DEEPER).to(dtype)
        images = make_images(97).to(dtype)
        with torch.inference_mode():
            assert relative(fold(model)(images), model(images)) < 1e-6

    def test_folds_extractors(self):
        extractor = FeatureExtractor(SMALL, (0, 4))
        for found, expected in zip(
            fold(extractor)(make_images()), extractor(make_images()), strict=True
        ):
            assert relative(found, expected) < 1e-6

    def test_standardizes_every_kernel_and_shares_the_rest(self):
        model = make_model(DEEPER)
        kernels = {n + ".weight" for n, m in model.named_modules() if isinstance(m, StdConv2d)}
        assert len(kernels) == 1 + 5 * 3 + 4
        folded = fold(model)
        assert [type(m) for m in folded.modules() if isinstance(m, StdConv2d)] == []
        for name, parameter in folded.named_parameters():
            original = model.get_parameter(name)
            assert not parameter.requires_grad
            if name in kernels:
                assert torch.equal(parameter, standardize_kernel(original.detach()))
            else:
                assert parameter.data_ptr() == original.data_ptr()

    def test_leaves_the_model_unchanged(self):
        model = make_model().train()
        before = copy.deepcopy(model.state_dict())
        folded = fold(model)
        assert folded.folded
        assert not folded.training
        assert not model.folded
        assert model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    def test_happens_once(self):
        folded = fold(make_model())
        assert fold(folded) is folded

    def test_keeps_strides_dilations_and_memory_format(self):
        model = make_model(output_stride=8).to(memory_format=torch.channels_last)
        folded = fold(model)
        kernel = folded.stages[3].blocks[0].conv2
        assert (kernel.stride, kernel.dilation, kernel.padding) == ((1, 1), (2, 2), (2, 2))
        assert kernel.weight.is_contiguous(memory_format=torch.channels_last)
        images = make_images(97)
        assert relative(folded(images), model(images)) < 1e-6

    @pytest.mark.parametrize(
        ("misuse", "says"),
        [
            (lambda model: model.train(), "A folded model cannot train"),
            (lambda model: model.train(True), "A folded model cannot train"),
            (lambda model: model.init_weights(), "A folded model cannot draw new kernels"),
            (
                lambda model: model.load_state_dict(make_model().state_dict()),
                "A folded model cannot load weights.*fold it again afterwards",
            ),
        ],
    )
    def test_refuses_what_needs_kernels(self, misuse, says):
        folded = fold(make_model())
        expected = folded(make_images())
        with pytest.raises(FoldedModelError, match=says):
            misuse(folded)
        assert torch.equal(folded.eval()(make_images()), expected)

    def test_survives_copies(self):
        folded = fold(make_model())
        for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
            assert twin.folded
            assert torch.equal(twin(make_images()), folded(make_images()))

    def test_its_weights_load_into_a_plain_model(self):
        model = make_model()
        twin = BiT(SMALL, CLASSES)
        twin.load_state_dict(fold(model).state_dict())
        assert relative(twin(make_images()), model(make_images())) < 1e-5


class TestTraining:
    def gradients(self, model):
        model.zero_grad()
        model(make_images(dtype=torch.float64)).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    def test_checkpointing_changes_no_gradient(self):
        model = make_model(DEEPER).double().train()
        expected = self.gradients(model)
        model.set_grad_checkpointing()
        for name, found in self.gradients(model).items():
            torch.testing.assert_close(found, expected[name], rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize(
        ("enable", "training", "grad", "runs"),
        [
            (True, True, True, 2),
            (False, True, True, 1),
            (True, False, True, 1),
            (True, True, False, 1),
        ],
    )
    def test_units_are_recomputed_only_in_training(self, enable, training, grad, runs):
        model = make_model(DEEPER).train(training)
        model.set_grad_checkpointing(enable)
        count = 0

        def tally(*_):
            nonlocal count
            count += 1

        units = [module for module in model.modules() if isinstance(module, Unit)]
        for unit in units:
            unit.conv1.register_forward_pre_hook(tally)
        with torch.set_grad_enabled(grad):
            logits = model(make_images())
        if grad:
            logits.sum().backward()
        assert count == runs * len(units)

    def test_no_gradient_points_along_a_filters_scale_or_mean(self):
        # Standardization removes both, except for eps against a variance of 1e-3 or more.
        model = make_model().double()
        for name, gradient in self.gradients(model).items():
            if gradient.ndim == 4 and not name.startswith("head"):
                gradient = nn.functional.normalize(gradient.flatten(1))
                kernel = nn.functional.normalize(model.get_parameter(name).detach().flatten(1))
                assert (gradient * kernel).sum(1).abs().max() < 1e-6, name
                assert gradient.mean(1).abs().max() < 1e-9, name


class TestHeadConvolution:
    @pytest.mark.parametrize("window", [(1, 1), (1, 3), (2, 2)])
    def test_pooled_and_dense(self, window):
        """For one pixel or many, each gets the same affine map, and gradients flow back."""
        rng = np.random.default_rng(0)
        weight, bias, x = (rng.standard_normal(shape) for shape in ((5, 4), (5,), (3, 4, *window)))
        head = ZeroConv2d(4, 5).double()
        assert not head(torch.from_numpy(x)).any()
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight[:, :, None, None]))
            head.bias.copy_(torch.from_numpy(bias))
        expected = np.einsum("oi,nihw->nohw", weight, x) + bias[:, None, None]
        images = torch.from_numpy(x).requires_grad_()
        found = head(images)
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12, atol=1e-12)
        found.sum().backward()
        np.testing.assert_allclose(
            images.grad.numpy(),
            np.broadcast_to(weight.sum(0)[:, None, None], x.shape),
            rtol=1e-12,
            atol=1e-12,
        )


class TestRuntimes:
    def test_compile_in_one_graph(self):
        model = make_model().train()
        compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
        for size in (64, 97):
            model.zero_grad()
            expected = model(make_images(size))
            expected.square().sum().backward()
            gradients = {name: p.grad for name, p in model.named_parameters()}
            model.zero_grad()
            found = compiled(make_images(size))
            found.square().sum().backward()
            torch.testing.assert_close(found, expected)
            for name, parameter in model.named_parameters():
                assert relative(parameter.grad, gradients[name]) < 1e-5, name

    def test_export_with_dynamic_batch_and_size(self):
        model = make_model()
        auto = torch.export.Dim.AUTO
        program = torch.export.export(
            model, (make_images(64),), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
        )
        for images in (make_images(64), make_images(97, batch=3), make_images(128)[:, :, :, :96]):
            torch.testing.assert_close(program.module()(images), model(images))

    def test_autocast_standardizes_in_float32(self, monkeypatch):
        used = []
        convolve = StdConv2d._conv_forward

        def spy(self, x, weight, bias):
            used.append(torch.equal(weight, standardize_kernel(self.weight)) and weight.dtype)
            return convolve(self, x, weight, bias)

        monkeypatch.setattr(StdConv2d, "_conv_forward", spy)
        model = make_model()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = model(make_images())
            assert set(used) == {torch.float32}
            assert len(used) == 1 + 4 * 4
            assert torch.equal(logits, fold(model)(make_images()))
        assert logits.dtype == torch.bfloat16
        # bfloat16 keeps 8 bits; a network of 17 convolutions measures 1e-2 here.
        assert relative(logits, model(make_images())) < 3e-2

    def test_autocast_trains(self):
        model = make_model().train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(make_images()).float().square().mean()
        loss.backward()
        expected = make_model().train()
        expected(make_images()).square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.dtype == torch.float32
            wanted = expected.get_parameter(name).grad
            cosine = nn.functional.cosine_similarity(parameter.grad.ravel(), wanted.ravel(), dim=0)
            assert cosine > 0.9, name

    def test_channels_last(self):
        model, images = make_model(DEEPER), make_images(97)
        expected = model(images)
        images = images.contiguous(memory_format=torch.channels_last)
        assert relative(model(images), expected) < 1e-5
        model = model.to(memory_format=torch.channels_last)
        features = model.forward_features(images)
        assert features.is_contiguous(memory_format=torch.channels_last)
        assert relative(model(images), expected) < 1e-5

    def test_copies_and_state_dicts(self, tmp_path):
        model = make_model(DEEPER)
        expected = model(make_images())
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        loaded = BiT(Architecture(DEEPER, 0.5), CLASSES).eval()
        loaded.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        for twin in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(make_images()), expected)
            assert twin.get_parameter("norm.weight") is not model.get_parameter("norm.weight")


class TestAdaptStemKernel:
    def test_values(self):
        weight = torch.arange(1.0, 7.0).reshape(2, 3, 1, 1)
        found = adapt_stem_kernel(weight, 1).flatten(1)
        assert found.tolist() == [[6], [15]]
        found = adapt_stem_kernel(weight, 4).flatten(1)
        expected = torch.tensor([[1.0, 2, 3, 1], [4, 5, 6, 4]]) * 0.75
        torch.testing.assert_close(found, expected)
        assert adapt_stem_kernel(weight, 2).flatten(1).tolist() == [[1.5, 3], [6, 7.5]]
        assert adapt_stem_kernel(weight, 3) is weight

    def adapted(self, model, in_chans):
        other = BiT(Architecture(TINY, 0.5, in_chans), CLASSES).eval().double()
        state = dict(model.state_dict())
        state["stem.conv.weight"] = adapt_stem_kernel(state["stem.conv.weight"], in_chans)
        other.load_state_dict(state)
        return other

    def test_gray_images_give_the_same_maps_up_to_a_factor_per_filter(self):
        model = make_model().double()
        gray = make_images(channels=1, dtype=torch.float64)
        (expected,) = model.forward_intermediates(gray.expand(-1, 3, -1, -1), [0])
        (found,) = self.adapted(model, 1).forward_intermediates(gray, [0])
        factor = (found / expected).mean((0, 2, 3), keepdim=True)
        torch.testing.assert_close(found, factor * expected, rtol=1e-9, atol=1e-9)
        assert 0 < factor.min() < 0.9 * factor.max()  # so not the same network

    def test_doubled_channels_give_the_same_logits(self):
        model = make_model().double()
        images = make_images(dtype=torch.float64)
        found = self.adapted(model, 6)(images.repeat(1, 2, 1, 1))
        # Twice the stem's map, so only eps 1e-5 in the first group normalization differs.
        assert relative(found, model(images)) < 1e-6

    @pytest.mark.parametrize(
        ("shape", "in_chans", "error", "says"),
        [
            ((8, 3), 1, LayoutError, r"kernel to adapt must have 4 dimensions"),
            ((8, 4, 7, 7), 1, LayoutError, r"with 3 input channels .* found shape \(8, 4, 7, 7\)"),
            ((8, 3, 7, 7), 0, ArchitectureError, "`in_chans` must be at least 1, found 0"),
        ],
    )
    def test_refuses_others(self, shape, in_chans, error, says):
        with pytest.raises(error, match=says):
            adapt_stem_kernel(torch.zeros(shape), in_chans)
