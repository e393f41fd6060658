"""The paper's ablation against timm, TensorFlow, Keras, and plain operations of torch.

Distances are relative L2 over all logits unless a test says otherwise. Random running statistics
and scales, so that nothing cancels.
"""

from functools import partial

import numpy as np
import pytest
import torch
from norm_grid import ENDINGS, TINY, distance, images_of, make, plain_forward
from torch import nn

from bitzoo.converters.parity.reference_tensorflow import is_installed, load_tensorflow
from bitzoo.models.architecture import Architecture
from bitzoo.models.batch_norm import AffineReLU, BatchNormReLU
from bitzoo.models.bit import BiT, FeatureExtractor, fold
from bitzoo.models.timm_numbers import with_timm_numbers

timm = pytest.importorskip("timm")

CLASSES = 10
SIDE = 80
ROUNDING = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-6, 1e-5)}
"""Largest distance of the network and of its folded form from timm's."""
STANDARDIZED = 2e-5
"""The same in float32 with standardized kernels, whose own rounding is 9e-6 in BiT's R50x1."""


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomized(peer):
    """Give a timm network random scales, shifts, statistics and a head of its usual size."""
    generator = torch.Generator().manual_seed(1)

    def draw(like):
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, tensor in peer.named_parameters():
            if name.startswith("head") and tensor.ndim == 4:
                tensor.copy_(draw(tensor) * 0.02)
            elif tensor.ndim == 1:
                tensor.copy_(0.3 * draw(tensor) + name.endswith("weight"))
        for name, tensor in peer.named_buffers():
            if name.endswith("running_mean"):
                tensor.copy_(draw(tensor))
            elif name.endswith("running_var"):
                tensor.copy_(0.1 + 3 * torch.rand(tensor.shape, generator=generator))
    return peer.eval()


def of_usual_size(peer):
    """Bring statistics near those of images: others let standardized kernels' maps overflow."""
    norms = [module for module in peer.modules() if isinstance(module, nn.BatchNorm2d)]
    drawn = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        peer.train()(images_of(4, SIDE, dtype=torch.float32))
        for norm, (mean, variance), momentum in zip(norms, drawn, usual, strict=True):
            norm.momentum = momentum
            norm.running_mean += 0.3 * mean * norm.running_var.sqrt()
            norm.running_var *= 0.5 + variance / 3
    return peer.eval()


def load(name, peer):
    model = BiT(Architecture.parse(name), CLASSES).eval()
    state = {k: v for k, v in peer.state_dict().items() if "num_batches" not in k}
    assert model.state_dict().keys() == state.keys()
    # Counters and all, as timm saves them.
    assert str(model.load_state_dict(peer.state_dict())) == "<All keys matched successfully>"
    return model


def compare(model, peer, dtype):
    """Return the distances of the network and of its folded form."""
    model.to(dtype)
    peer.to(dtype)
    images = images_of(2, SIDE, dtype=dtype)
    with torch.no_grad():
        expected = peer(images)
        assert expected.std() > 0.1  # or nothing would be compared with nothing
        return distance(model(images), expected), distance(fold(model)(images), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_batch_norm_without_standardization_is_timms_resnetv2_50(dtype):
    peer = randomized(timm.create_model("resnetv2_50", num_classes=CLASSES))
    model = with_timm_numbers(load("R50x1-BN-noWS", peer))
    plain, folded = compare(model, peer, dtype)
    assert plain <= ROUNDING[dtype][0]
    assert folded <= ROUNDING[dtype][1]


def test_bits_own_numbers_differ_from_timms_by_eps_and_border():
    peer = randomized(timm.create_model("resnetv2_50", num_classes=CLASSES))
    model = load("R50x1-BN-noWS", peer)
    assert compare(model, peer, torch.float32)[0] > 1e-4
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    padded = compare(model, peer, torch.float32)[0]
    assert padded > 1e-4
    peer.stem.pool = nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, 2))
    assert compare(model, peer, torch.float32)[0] <= 1e-6


@pytest.mark.parametrize("ending", ["-BN", "-noWS", "-BN-noWS"])
def test_every_network_is_one_that_timms_layers_make(ending):
    """timm names none of them, but its network takes any layers."""
    from timm.layers import BatchNormAct2d, GroupNormAct, StdConv2d, create_conv2d
    from timm.models.resnetv2 import ResNetV2

    kernels = create_conv2d if "noWS" in ending else partial(StdConv2d, eps=1e-10)
    peer = ResNetV2(
        layers=[3, 4, 6, 3],
        num_classes=CLASSES,
        stem_type="fixed",
        conv_layer=kernels,
        norm_layer=partial(BatchNormAct2d, eps=1e-3) if "BN" in ending else GroupNormAct,
    )
    model = load("R50x1" + ending, of_usual_size(randomized(peer)))
    for dtype, (most, most_folded) in ROUNDING.items():
        plain, folded = compare(model, peer, dtype)
        if dtype == torch.float32 and "noWS" not in ending:
            most = most_folded = STANDARDIZED
        assert plain <= most
        assert folded <= most_folded


def test_timm_loads_what_bitzoo_saves():
    model = make("R50x1-BN-noWS", CLASSES, dtype=torch.float32)
    peer = timm.create_model("resnetv2_50", num_classes=CLASSES)
    assert not any(peer.load_state_dict(model.state_dict(), strict=True))
    assert not any(peer.load_state_dict(dict(model.state_dict()), strict=True))
    name = "stages.1.blocks.2.norm2.running_var"
    assert torch.equal(peer.state_dict()[name], model.state_dict()[name])


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", [48, 33])
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str
)
def test_every_network_equals_plain_operations_folded_or_not(ending, size, dtype, most):
    model, images = make(TINY + ending), images_of(size=size)
    form = model.architecture
    expected = plain_forward(
        model.state_dict(), images, norm=form.norm, standardized=form.weight_standardization
    )
    model, images = model.to(dtype), images.to(dtype)
    with torch.no_grad():
        found = model(images)
        assert distance(found.double(), expected) < most
        again = fold(model)(images)
    assert distance(again.double(), expected) < most
    # Without batch normalization, folding changes no bit.
    assert torch.equal(again, found) or form.norm == "batch"


def test_a_folded_network_has_no_batch_norm_left():
    model = make(TINY + "-BN")
    images = images_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold(model)
    kinds = [type(module) for module in folded.modules()]
    assert BatchNormReLU not in kinds
    assert kinds.count(AffineReLU) == 5 + 1  # one a unit, and the last
    assert kinds.count(nn.ReLU) == 2 * 5
    biased = {
        n for n, m in folded.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None
    }
    assert {name.rpartition(".")[2] for name in biased} == {"conv1", "conv2", "fc"}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert fold(folded) is folded
    assert distance(folded(images), model(images)) < 1e-13


@pytest.mark.parametrize("ending", ENDINGS[1:])
@pytest.mark.parametrize("stride", [8, 32])
def test_feature_extractors_of_every_network(ending, stride):
    model = make(TINY + ending, output_stride=stride)
    extractor = FeatureExtractor(model.architecture, (0, 2, 4), output_stride=stride).double()
    assert not extractor.load_state_dict(model.state_dict(), strict=False).missing_keys
    extractor.eval()
    images = images_of()
    expected = model.forward_intermediates(images, (0, 2, 4))
    for network in (extractor, fold(extractor)):
        for found, wanted in zip(network(images), expected, strict=True):
            assert distance(found, wanted) < 1e-12


def tensorflow():
    if not is_installed():
        pytest.skip("TensorFlow is not installed")
    return load_tensorflow()


class TestRunningStatistics:
    """Momentum 0.99 and eps 1e-3 in TensorFlow's sense, over several batches."""

    CHANNELS, STEPS = 8, 12

    def batches(self):
        rng = np.random.default_rng(0)
        shape = (self.STEPS, 2, 3, 5, self.CHANNELS)
        scale = rng.uniform(0.5, 4, self.CHANNELS)
        return (rng.standard_normal(shape) * scale + rng.normal(size=self.CHANNELS)).astype("f4")

    def ours(self):
        layer = BatchNormReLU(self.CHANNELS).train()
        outputs = [
            layer(torch.from_numpy(batch).permute(0, 3, 1, 2)).detach() for batch in self.batches()
        ]
        return layer, torch.stack(outputs).permute(0, 1, 3, 4, 2).numpy()

    def test_equal_tensorflows_fused_operator(self):
        tf = tensorflow()
        mean, variance = tf.zeros(self.CHANNELS), tf.ones(self.CHANNELS)
        outputs = []
        for batch in self.batches():
            y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
                batch,
                tf.ones(self.CHANNELS),
                tf.zeros(self.CHANNELS),
                mean=mean,
                variance=variance,
                epsilon=1e-3,
                is_training=True,
                exponential_avg_factor=1 - 0.99,
            )
            outputs.append(tf.nn.relu(y).numpy())
        layer, found = self.ours()
        np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.running_var, variance, rtol=1e-6)
        np.testing.assert_allclose(found, np.stack(outputs), atol=2e-6)

    def test_keras_3_takes_the_biased_variance(self):
        tf = tensorflow()
        peer = tf.keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3)
        outputs = [np.maximum(peer(batch, training=True).numpy(), 0) for batch in self.batches()]
        layer, found = self.ours()
        np.testing.assert_allclose(layer.running_mean, peer.moving_mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found, np.stack(outputs), atol=5e-6)
        count = 2 * 3 * 5
        kept = 0.99**self.STEPS  # of the first value, 1, which is no batch's variance
        biased = kept + (layer.running_var.numpy() - kept) * (count - 1) / count
        np.testing.assert_allclose(peer.moving_variance, biased, rtol=1e-6)
        assert np.abs(layer.running_var.numpy() / peer.moving_variance.numpy() - 1).max() > 1e-3
