"""The network's numbers against a float64 network nobody derived from ours, and against timm."""

from argparse import Namespace
from functools import partial

import pytest
import timm
import torch
from checkpoints import TINY, as_timm, make_checkpoint, write_npz
from oracle.networks import run
from packaging.version import Version
from timm.layers import StdConv2d as TimmConv
from timm.models import adapt_input_conv, load_checkpoint
from timm.models._features import FeatureListNet
from timm.models.resnetv2 import ResNetV2

import bitzoo
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT, FeatureExtractor, adapt_stem_kernel, fold

DEEPER = (2, 1, 1, 1)
R50 = (3, 4, 6, 3)

FLOAT32 = {"he": 2e-5, 0.001: 1e-4}
"""Relative L2 of logits that the project promises in float32, by kernel std. Measured here 5e-7
(tiny) to 4e-6 (R50x1) at either std: rounding in convolutions, which every float32 network has."""

FLOAT64 = 1e-12
"""Measured 5e-16 to 6e-15. The faults planted below cost 5e-4 and more."""


def make_model(checkpoint, depths, width=0.5, dtype=torch.float32, **options):
    num_classes = len(checkpoint.get("resnet/head/conv2d/bias", ()))
    model = BiT(Architecture(depths, width), num_classes, **options)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in as_timm(checkpoint).items()})
    return model.eval().to(dtype)


def make_timm(checkpoint, depths, width=0.5, eps=1e-10, dtype=torch.float64, **options):
    num_classes = len(checkpoint.get("resnet/head/conv2d/bias", ()))
    model = ResNetV2(
        layers=list(depths),
        width_factor=width,
        num_classes=num_classes,
        stem_type="fixed",
        conv_layer=partial(TimmConv, eps=eps),
        **options,
    )
    model.load_state_dict({k: torch.from_numpy(v) for k, v in as_timm(checkpoint).items()})
    return model.eval().to(dtype)


def make_images(size, batch=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(size)
    return (torch.rand(batch, 3, size, size, generator=generator) * 2 - 1).to(dtype)


def relative(found, expected):
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("size", [64, 97])
@pytest.mark.parametrize("kernel_std", ["he", 0.001])
@pytest.mark.parametrize("depths", [TINY, DEEPER])
def test_logits_equal_the_reference(depths, kernel_std, size):
    checkpoint = make_checkpoint(depths, kernel_std=kernel_std)
    images = make_images(size)
    expected = run(checkpoint, images).logits
    with torch.inference_mode():
        single = make_model(checkpoint, depths)
        assert relative(single(images), expected) < FLOAT32[kernel_std]
        assert relative(fold(single)(images), expected) < FLOAT32[kernel_std]
        double = make_model(checkpoint, depths, dtype=torch.float64)
        assert relative(double(images.double()), expected) < FLOAT64


@pytest.mark.parametrize("kernel_std", ["he", 0.001])
def test_r50x1_equals_the_reference(kernel_std):
    checkpoint = make_checkpoint(R50, 1, kernel_std=kernel_std)
    images = make_images(97, batch=1)
    expected = run(checkpoint, images).logits
    with torch.inference_mode():
        model = make_model(checkpoint, R50, 1)
        assert relative(model(images), expected) < FLOAT32[kernel_std]
        assert relative(fold(model)(images), expected) < FLOAT32[kernel_std]


def test_everything_on_the_way_equals_the_reference():
    checkpoint = make_checkpoint(DEEPER)
    images = make_images(97, dtype=torch.float64)
    expected = run(checkpoint, images)
    model = make_model(checkpoint, DEEPER, dtype=torch.float64)
    with torch.inference_mode():
        maps = model.forward_intermediates(images)
        for found, wanted in zip(maps, [expected.root, *expected.blocks], strict=True):
            assert relative(found, wanted) < FLOAT64
        features = model.forward_features(images)
        assert relative(features, expected.features) < FLOAT64
        assert relative(model.forward_head(features, pre_logits=True), expected.pooled) < FLOAT64
        del checkpoint["resnet/head/conv2d/kernel"], checkpoint["resnet/head/conv2d/bias"]
        encoder = make_model(checkpoint, DEEPER, dtype=torch.float64)
        assert relative(encoder(images), expected.pooled) < FLOAT64


@pytest.mark.parametrize(
    ("fault", "kernel_std", "at_least"),
    [({"eps": 1e-8}, 0.001, 4e-4), ({"root_padding": float("-inf")}, "he", 4e-4)],
)
def test_the_reference_tells_a_peers_numerics_from_googles(fault, kernel_std, at_least):
    checkpoint = make_checkpoint(kernel_std=kernel_std)
    images = make_images(97)
    right, wrong = run(checkpoint, images).logits, run(checkpoint, images, **fault).logits
    assert relative(wrong, right) > at_least
    model = make_model(checkpoint, TINY, dtype=torch.float64)
    assert relative(model(images.double()), wrong) > at_least


def test_gradients_equal_the_references():
    checkpoint = make_checkpoint(DEEPER)
    images = make_images(64, dtype=torch.float64)
    weights = {k: torch.from_numpy(v).double().requires_grad_() for k, v in checkpoint.items()}
    run(weights, images).logits.square().sum().backward()
    expected = as_timm({name: weight.grad.numpy() for name, weight in weights.items()})
    model = make_model(checkpoint, DEEPER, dtype=torch.float64).train()
    model(images).square().sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert relative(gradient, torch.from_numpy(expected[name])) < 1e-9, name


class TestTimm:
    @pytest.mark.parametrize("depths", [TINY, DEEPER])
    def test_reads_an_npz_into_the_same_state(self, depths, tmp_path):
        checkpoint = make_checkpoint(depths)
        theirs = make_timm(make_checkpoint(depths, seed=1), depths, dtype=torch.float32)
        theirs.load_pretrained(str(write_npz(tmp_path / "tiny.npz", checkpoint)))
        ours = make_model(checkpoint, depths)
        state = theirs.state_dict()
        assert state.keys() == ours.state_dict().keys()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, state[name]), name
        ours.load_state_dict(state, strict=True)
        theirs.load_state_dict(ours.state_dict(), strict=True)

    @pytest.mark.slow
    @pytest.mark.parametrize("weights", ["ema", "raw"])
    @pytest.mark.parametrize("average", ["state_dict_ema", "model_ema"])
    def test_takes_the_same_weights_from_a_training_checkpoint(self, tmp_path, average, weights):
        """Raw weights and averages in one file, as timm's trainer saves them."""
        path = tmp_path / "last.pth.tar"
        raw, averaged = (as_timm(make_checkpoint(TINY, seed=seed)) for seed in (1, 2))
        states = {
            key: {f"module.{name}": torch.from_numpy(v.copy()) for name, v in state.items()}
            for key, state in (("state_dict", raw), (average, averaged))
        }
        torch.save({"epoch": 3, "args": Namespace(lr=0.1), "metric": 0.8, **states}, path)
        theirs = make_timm(make_checkpoint(TINY), TINY)
        use_average = weights == "ema"
        load_checkpoint(theirs, str(path), use_ema=use_average, weights_only=False)
        images = make_images(64, dtype=torch.float64)
        with torch.inference_mode():
            expected = theirs(images)
            for asked in (weights, None) if use_average else (weights,):
                ours = bitzoo.create_model(path, pretrained=True, weights=asked).double()
                assert relative(ours(images), expected) < FLOAT64
        result = bitzoo.convert(path, tmp_path / "a.safetensors", weights=weights)
        assert result.parity.passed
        for asked in ("ema", "raw"):
            proof = bitzoo.verify(path, result.output, check="weights", weights=asked)
            assert proof.passed is (asked == weights)

    @pytest.mark.parametrize("num_classes", [10, 0])
    @pytest.mark.parametrize("size", [64, 97])
    def test_gives_the_same_logits_once_its_eps_is_googles(self, size, num_classes):
        checkpoint = make_checkpoint(DEEPER, num_classes=num_classes, kernel_std=0.001)
        images = make_images(size, dtype=torch.float64)
        ours = make_model(checkpoint, DEEPER, dtype=torch.float64)
        with torch.inference_mode():
            expected = make_timm(checkpoint, DEEPER)(images)
            assert relative(ours(images), expected) < FLOAT64
            as_shipped = make_timm(checkpoint, DEEPER, eps=1e-8)(images)
            assert relative(ours(images), as_shipped) > 4e-4

    @pytest.mark.skipif(
        Version(timm.__version__) < Version("1.0.31"),
        reason="timm's forward_intermediates raises UnboundLocalError there",
    )
    @pytest.mark.parametrize("output_stride", [32, 16, 8])
    def test_gives_the_same_maps_at_every_output_stride(self, output_stride):
        depths = (1, 2, 2, 2)
        checkpoint = make_checkpoint(depths)
        images = make_images(97, dtype=torch.float64)
        theirs = make_timm(checkpoint, depths, output_stride=output_stride)
        ours = make_model(checkpoint, depths, output_stride=output_stride, dtype=torch.float64)
        assert ours.feature_info == theirs.feature_info
        with torch.inference_mode():
            expected = theirs.forward_intermediates(images, intermediates_only=True)
            for found, wanted in zip(ours.forward_intermediates(images), expected, strict=True):
                assert relative(found, wanted) < FLOAT64
            assert relative(ours(images), theirs(images)) < FLOAT64

    @pytest.mark.parametrize("indices", [(0, 1, 2, 3, 4), (1, 3)])
    def test_extracts_the_same_features(self, indices):
        checkpoint = make_checkpoint()
        images = make_images(97, dtype=torch.float64)
        theirs = make_timm(checkpoint, TINY)
        theirs = FeatureListNet(theirs, out_indices=indices, flatten_sequential=True)
        ours = FeatureExtractor(Architecture(TINY, 0.5), indices).double()
        state = make_model(checkpoint, TINY).state_dict()
        ours.load_state_dict({name: state[name] for name in ours.state_dict()})
        assert ours.feature_info.channels() == theirs.feature_info.channels()
        assert ours.feature_info.reduction() == theirs.feature_info.reduction()
        for found, wanted in zip(ours(images), theirs(images), strict=True):
            assert relative(found, wanted) < FLOAT64

    @pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 6])
    def test_adapts_the_stem_alike(self, in_chans):
        weight = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(0))
        expected = adapt_input_conv(in_chans, weight)
        torch.testing.assert_close(adapt_stem_kernel(weight, in_chans), expected)
