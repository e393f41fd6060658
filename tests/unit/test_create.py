"""Models by name and by file: which network, which numbers, how to feed and read it.

Where the weights of a name come from is tests/unit/test_resolve.py's question.
"""

import copy
import dataclasses
import hashlib
import json
import logging
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import timm.data
import torch
from checkpoints import TINY, as_timm, make_checkpoint, write_npz
from oracle.networks import run
from PIL import Image
from servers import FileServer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bitzoo
from bitzoo.catalogue.model_info import Identity
from bitzoo.converters.parity.verify import Check, convert_and_prove
from bitzoo.errors import (
    CheckpointError,
    FoldedModelError,
    LayoutError,
    UnknownModelError,
    UsageError,
    WeightsUnavailableError,
)
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.models.bit import BiT, FeatureExtractor

CLASSES = 10
FLOAT32_ROUNDING = 2e-5
"""Relative L2 of float32 logits to a float64 oracle; see logits_proof.LOGITS_REASON."""
DTD = "BiT-M-R50x1-run0-dtd"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BITZOO_OFFLINE", "1")
    monkeypatch.delenv("BITZOO_HUB_ORG", raising=False)


@pytest.fixture
def small_names(monkeypatch):
    """Every R50x1 of the catalogue is a network of 8 MB, so that names can be had for nothing."""
    monkeypatch.setitem(ARCHITECTURES, "R50x1", Architecture(TINY, 0.5))


@pytest.fixture(scope="module")
def arrays():
    return make_checkpoint(num_classes=CLASSES)


@pytest.fixture(scope="module")
def folder(arrays, tmp_path_factory):
    """One checkpoint in every form: own.npz, own.safetensors, model/ with config.json."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_npz(folder / "own.npz", arrays)
    save_safetensors(folder / "own.safetensors", arrays)
    (folder / "model").mkdir()
    save_safetensors(folder / "model/model.safetensors", arrays)
    config = {
        "architecture": "resnetv2_50x1_bit",
        "label_names": [f"class {i}" for i in range(CLASSES)],
        "pretrained_cfg": {"input_size": [3, 96, 96], "crop_pct": 0.875},
    }
    (folder / "model/config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 65, 65, generator=torch.Generator().manual_seed(0)) * 2 - 1


def save_safetensors(path, arrays, metadata=None):
    """Written by the safetensors library, not by ours."""
    tensors = {name: np.ascontiguousarray(array) for name, array in as_timm(arrays).items()}
    safetensors.numpy.save_file(tensors, path, metadata)
    return path


def assert_same(model, arrays):
    expected = as_timm(arrays)
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32
        np.testing.assert_array_equal(tensor.numpy(), expected[name], name)


def distance(found, expected):
    found = found.detach().double()
    return ((found - expected).norm() / expected.norm()).item()


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


class RealWrites(TorchDispatchMode):
    """Notes every operation that leaves numbers in real storage (not on the meta device)."""

    FILLS = re.compile(r"normal|uniform|zero|fill|ones|copy|clone|random|arange")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and not leaf.is_meta for leaf in tree_leaves(result)):
            self.seen.append(str(operation))
        return result

    @property
    def fills(self):
        return [name for name in self.seen if self.FILLS.search(name)]


class TestRandomWeights:
    def test_a_released_architecture(self):
        model = bitzoo.create_model("BiT-M-R50x1", num_classes=5)
        assert model.training
        assert model.architecture == Architecture((3, 4, 6, 3), 1)
        # 23,500,352 without a head: 25,549,352 with the 1,000 classes of BiT-S (timm's count)
        assert sum(p.numel() for p in model.parameters()) == 25_549_352 - 995 * 2049
        kernel = model.get_parameter("stages.2.blocks.5.conv2.weight")
        assert kernel.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
        assert torch.equal(model(torch.rand(1, 3, 32, 32)), torch.zeros(1, 5))
        assert model.info.identity == Identity(None, "unknown", "random weights")
        assert (model.info.preprocessing.crop, model.info.path) == (224, None)

    @pytest.mark.parametrize("name", ["bit_m_r50x1_run0_dtd", "BITMR50X1RUN0DTD", DTD])
    def test_names_bring_their_class_count(self, small_names, name):
        model = bitzoo.create_model(name)
        assert model.num_classes == model.info.num_classes == 47

    def test_without_a_head_features_are_pooled(self, small_names):
        model = bitzoo.create_model(DTD, num_classes=0).eval()
        images = torch.rand(2, 3, 40, 40)
        expected = model.forward_features(images).mean((2, 3))
        torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("in_chans", [1, 4])
    def test_other_channels(self, small_names, in_chans):
        model = bitzoo.create_model(DTD, in_chans=in_chans)
        assert model.stem.conv.weight.shape == (32, in_chans, 7, 7)
        assert model.stem.conv.weight.std().item() == pytest.approx(
            (2 / (49 * in_chans)) ** 0.5, rel=0.1
        )

    def test_of_a_files_architecture(self, folder, arrays):
        model = bitzoo.create_model(folder / "own.npz", pretrained=False)
        assert model.training
        assert (model.architecture, model.num_classes) == (Architecture(TINY, 0.5), CLASSES)
        assert not model.get_parameter("head.fc.weight").any()
        assert model.info.path is None
        stem = as_timm(arrays)["stem.conv.weight"]
        assert not np.array_equal(model.stem.conv.weight.detach().numpy(), stem)

    def test_who_names_a_file_and_says_no_more_gets_its_weights(self, folder, arrays):
        model = bitzoo.create_model(folder / "own.npz")
        assert not model.training
        stem = as_timm(arrays)["stem.conv.weight"]
        np.testing.assert_array_equal(model.stem.conv.weight.detach().numpy(), stem)

    def test_unknown_names_meet_their_neighbours(self):
        with pytest.raises(
            UnknownModelError, match=r"'BiT-M-R50x2' is not.* Nearest names: BiT-M-R50x"
        ):
            bitzoo.create_model("BiT-M-R50x2")


class TestFromAFile:
    @pytest.mark.parametrize("place", ["own.npz", "own.safetensors", "model"])
    @pytest.mark.parametrize("kind", [str, Path])
    def test_numbers_are_the_files(self, folder, arrays, place, kind):
        threads = torch.get_num_threads()
        model = bitzoo.create_model(kind(folder / place), pretrained=True)
        assert_same(model, arrays)
        assert not model.training
        assert not any(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert model.architecture == Architecture(TINY, 0.5)
        file = folder / place / "model.safetensors" if place == "model" else folder / place
        assert model.info.path == str(file)
        assert torch.get_num_threads() == threads

    def test_a_home_folder_may_be_short(self, folder, arrays, monkeypatch):
        monkeypatch.setenv("HOME", str(folder))
        assert_same(bitzoo.create_model("~/own.npz", pretrained=True), arrays)

    def test_an_address(self, folder, arrays, monkeypatch):
        monkeypatch.delenv("BITZOO_OFFLINE")
        with FileServer(folder) as server:
            assert_same(bitzoo.create_model(server.url + "own.npz", pretrained=True), arrays)
            again = bitzoo.create_model(server.url + "own.npz", pretrained=True)
            gets = [request.path for request in server.requests if request.method == "GET"]
        assert gets == ["own.npz"]
        assert_same(again, arrays)

    def test_as_the_safetensors_library_reads_it(self, folder, tmp_path):
        output = tmp_path / "out.safetensors"
        convert_and_prove(folder / "own.npz", output, check=Check.NONE)
        expected = safetensors.torch.load_file(output)
        from_npz = bitzoo.create_model(folder / "own.npz", pretrained=True).state_dict()
        from_output = bitzoo.create_model(output, pretrained=True).state_dict()
        assert from_npz.keys() == from_output.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(from_output[name].view(torch.int32), tensor.view(torch.int32))
            assert torch.equal(from_npz[name].view(torch.int32), tensor.view(torch.int32))

    @pytest.mark.parametrize("place", ["own.npz", "own.safetensors"])
    def test_logits_are_the_oracles(self, folder, arrays, images, place):
        model = bitzoo.create_model(folder / place, pretrained=True)
        assert distance(model(images), run(arrays, images).logits) < FLOAT32_ROUNDING

    @pytest.mark.parametrize("dtype", ["float64", "float16"])
    def test_other_number_formats_become_float32(self, arrays, tmp_path, dtype):
        stored = {name: array.astype(dtype) for name, array in arrays.items()}
        read = {name: array.astype(np.float32) for name, array in stored.items()}
        write_npz(tmp_path / "x.npz", stored)
        save_safetensors(tmp_path / "x.safetensors", stored)
        for name in ("x.npz", "x.safetensors"):
            assert_same(bitzoo.create_model(tmp_path / name, pretrained=True), read)

    @pytest.mark.parametrize("place", ["own.npz", "own.safetensors"])
    def test_nothing_is_drawn_that_weights_overwrite(self, folder, place):
        before = torch.get_rng_state()
        with RealWrites() as writes:
            model = bitzoo.create_model(folder / place, pretrained=True)
        assert writes.seen  # the mode does see what torch does
        assert writes.fills == []
        assert torch.equal(torch.get_rng_state(), before)
        assert not any(parameter.is_meta for parameter in model.parameters())

    def test_the_probe_for_drawing_sees_drawing(self, small_names):
        with RealWrites() as writes:
            bitzoo.create_model(DTD)
        assert {"aten.normal_.default", "aten.zero_.default"} <= set(writes.fills)

    def test_writing_to_a_model_leaves_the_file_alone(self, arrays, tmp_path):
        path = save_safetensors(tmp_path / "own.safetensors", arrays)
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        model = bitzoo.create_model(path, pretrained=True)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        assert not np.array_equal(model.norm.weight.detach(), as_timm(arrays)["norm.weight"])
        del model
        assert hashlib.sha256(path.read_bytes()).hexdigest() == checksum
        assert_same(bitzoo.create_model(path, pretrained=True), arrays)

    def test_a_damaged_npz_is_noticed(self, folder, tmp_path):
        content = bytearray((folder / "own.npz").read_bytes())
        content[len(content) // 2] ^= 1
        path = tmp_path / "flipped.npz"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"flipped\.npz: tensor '.*' is damaged.*CRC-32"):
            bitzoo.create_model(path, pretrained=True)

    def test_copies_know_where_they_come_from(self, folder):
        model = bitzoo.create_model(folder / "model", pretrained=True)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), bitzoo.fold(model)):
            assert other.info == model.info
            assert bitzoo.labels(other) == [f"class {i}" for i in range(CLASSES)]

    def test_folded(self, folder, arrays, images):
        model = bitzoo.fold(bitzoo.create_model(folder / "own.npz", pretrained=True))
        assert distance(model(images), run(arrays, images).logits) < FLOAT32_ROUNDING
        with pytest.raises(FoldedModelError, match="folded model cannot train"):
            model.train()


class TestHeads:
    @pytest.mark.parametrize("num_classes", [None, CLASSES])
    def test_the_files_own_head_stays(self, folder, arrays, caplog, num_classes):
        model = bitzoo.create_model(
            folder / "own.safetensors", pretrained=True, num_classes=num_classes
        )
        assert_same(model, arrays)
        assert messages(caplog) == []

    def test_another_count_starts_at_zero_and_says_so(self, folder, arrays, images, caplog):
        model = bitzoo.create_model(folder / "own.npz", pretrained=True, num_classes=3)
        assert messages(caplog) == [
            "own.npz has a head of 10 classes; the new head of 3 classes starts at zero and needs "
            "training."
        ]
        assert caplog.records[0].levelno == logging.WARNING
        assert torch.equal(model(images), torch.zeros(2, 3))
        body = {name: array for name, array in arrays.items() if "head" not in name}
        model.reset_classifier(0)
        assert_same(model, body)

    def test_no_head_gives_the_oracles_features(self, folder, arrays, images, caplog):
        model = bitzoo.create_model(folder / "own.safetensors", pretrained=True, num_classes=0)
        assert distance(model(images), run(arrays, images).pooled) < FLOAT32_ROUNDING
        assert messages(caplog) == []

    def test_a_file_without_a_head(self, tmp_path, images, caplog):
        arrays = make_checkpoint(num_classes=0)
        path = save_safetensors(tmp_path / "body.safetensors", arrays)
        model = bitzoo.create_model(path, pretrained=True)
        assert model.num_classes == 0
        assert distance(model(images), run(arrays, images).pooled) < FLOAT32_ROUNDING
        assert bitzoo.create_model(path, pretrained=True, num_classes=4).num_classes == 4
        assert messages(caplog)[0].startswith("body.safetensors has no head; the new head of 4")

    def test_a_negative_count(self, folder):
        with pytest.raises(bitzoo.errors.ArchitectureError, match="-1"):
            bitzoo.create_model(folder / "own.npz", pretrained=True, num_classes=-1)


class TestFeaturesAndChannels:
    def test_feature_maps_are_the_oracles(self, folder, arrays, images):
        model = bitzoo.create_model(
            folder / "own.safetensors", pretrained=True, features_only=True, out_indices=(4, 0, 2)
        )
        assert isinstance(model, FeatureExtractor)
        assert model.feature_info.reduction() == [32, 2, 8]
        expected = run(arrays, images)
        for found, oracle in zip(
            model(images), (expected.blocks[3], expected.root, expected.blocks[1]), strict=True
        ):
            assert distance(found, oracle) < FLOAT32_ROUNDING

    def test_all_maps_unless_told(self, folder):
        model = bitzoo.create_model(folder / "own.npz", pretrained=True, features_only=True)
        assert model.out_indices == (0, 1, 2, 3, 4)

    def test_only_what_the_maps_need_is_built(self, folder, arrays, images):
        model = bitzoo.create_model(
            folder / "own.npz", pretrained=True, features_only=True, out_indices=[1]
        )
        assert {name.split(".")[1] for name in model.state_dict()} == {"conv", "0"}
        assert distance(model(images)[0], run(arrays, images).blocks[0]) < FLOAT32_ROUNDING

    def test_no_such_map(self, folder):
        with pytest.raises(UsageError, match=r"from 0 to 4.*found \(5,\)"):
            bitzoo.create_model(
                folder / "own.npz", pretrained=True, features_only=True, out_indices=[5]
            )

    @pytest.mark.parametrize(("stride", "size"), [(32, 2), (16, 4), (8, 8)])
    def test_output_stride(self, folder, arrays, stride, size):
        images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
        path = folder / "own.safetensors"
        model = bitzoo.create_model(path, pretrained=True, output_stride=stride)
        assert_same(model, arrays)
        expected = run(arrays, images)
        maps = model.forward_intermediates(images)
        assert maps[4].shape[2:] == (size, size)
        for found, oracle in zip(maps[1:], expected.blocks, strict=True):
            if found.shape == oracle.shape:  # blocks before the first dilated one
                assert distance(found, oracle) < FLOAT32_ROUNDING

    @pytest.mark.parametrize("in_chans", [1, 4])
    def test_rgb_weights_for_other_channels(self, folder, arrays, caplog, in_chans):
        model = bitzoo.create_model(folder / "own.npz", pretrained=True, in_chans=in_chans)
        rgb = as_timm(arrays)["stem.conv.weight"]
        if in_chans == 1:
            expected = rgb[:, 0:1] + rgb[:, 1:2] + rgb[:, 2:3]
        else:
            expected = np.concatenate([rgb, rgb[:, :1]], axis=1) * np.float32(0.75)
        np.testing.assert_allclose(model.stem.conv.weight.detach(), expected, rtol=0, atol=1e-6)
        assert messages(caplog) == [f"The stem's kernel was adapted from 3 to {in_chans} channels."]
        assert model(torch.rand(1, in_chans, 32, 32)).isfinite().all()

    def test_a_file_for_four_channels_keeps_them(self, tmp_path, caplog):
        arrays = make_checkpoint(in_chans=4)
        images = torch.rand(2, 4, 33, 33, generator=torch.Generator().manual_seed(2)) * 2 - 1
        path = write_npz(tmp_path / "four.npz", arrays)
        model = bitzoo.create_model(path, pretrained=True)
        assert distance(model(images), run(arrays, images).logits) < FLOAT32_ROUNDING
        assert messages(caplog) == []
        with pytest.raises(LayoutError, match="Only a stem kernel with 3 input channels"):
            bitzoo.create_model(path, pretrained=True, in_chans=3)


class TestNamesWithOnesOwnFile:
    def test_the_file_fits_the_name(self, small_names, folder, arrays):
        model = bitzoo.create_model("BiT-M-R50x1", pretrained=folder / "own.npz")
        assert_same(model, arrays)  # its own 10 classes, not the name's 21,843
        assert model.info.identity.name is None  # the name has another head
        assert (model.info.base.name, model.info.base.basis) == ("BiT-M-R50x1", "stated")
        assert model.info.path == str(folder / "own.npz")

    def test_the_file_is_of_another_network(self, folder):
        with pytest.raises(
            CheckpointError,
            match=r"own\.npz: expected R50x1, the architecture of BiT-M-R50x1, "
            r"found R\(1,1,1,1\)x0\.5 with 10 classes.*give the file instead of the name",
        ):
            bitzoo.create_model("BiT-M-R50x1", pretrained=folder / "own.npz")

    def test_never_released(self):
        with pytest.raises(
            WeightsUnavailableError,
            match=r"BiT-L-R50x1 .*Google never released.*give the path of your file",
        ):
            bitzoo.create_model("BiT-L-R50x1", pretrained=True)

    def test_never_released_but_reproduced(self, small_names, folder, arrays):
        assert_same(bitzoo.create_model("BiT-L-R50x1", pretrained=folder / "own.npz"), arrays)

    def test_no_such_file(self):
        with pytest.raises(CheckpointError, match=r"missing\.npz: expected a checkpoint.*nothing"):
            bitzoo.create_model("BiT-M-R50x1", pretrained="missing.npz")

    def test_two_files(self, folder):
        with pytest.raises(UsageError, match=r"Two checkpoints.*own\.npz.*and model\. Give a"):
            bitzoo.create_model(folder / "own.npz", pretrained="model")

    def test_a_folder_without_a_model(self, tmp_path):
        with pytest.raises(
            CheckpointError, match=r"folder with model\.safetensors.*found none of these"
        ):
            bitzoo.create_model(tmp_path, pretrained=True)

    @pytest.mark.parametrize("place", ["no/such/file", "none.safetensors", Path("BiT-M-R50x1")])
    def test_no_such_place(self, place):
        with pytest.raises(CheckpointError, match=f"{place}: .* found nothing there"):
            bitzoo.create_model(place, pretrained=True)

    def test_a_name_too_long_for_a_file(self):
        with pytest.raises(UnknownModelError, match="is not a name in the catalogue"):
            bitzoo.create_model("x" * 300)

    @pytest.mark.parametrize(("text", "says"), [("{", "expected JSON"), ("[]", "found list")])
    def test_a_broken_config(self, arrays, tmp_path, text, says):
        save_safetensors(tmp_path / "model.safetensors", arrays)
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=rf"config\.json: .*{says}"):
            bitzoo.create_model(tmp_path, pretrained=True)


def transform_of(name):
    return dataclasses.astuple(bitzoo.create_transform(name))[:4]


class TestTransform:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("BiT-M-R50x1", (224, 256, "bilinear", False)),
            ("BiT-M-R50x1-ILSVRC2012", (448, 448, "bilinear", False)),
            ("BiT-M-R152x4-ILSVRC2012", (480, 480, "bilinear", False)),
            ("BiT-M-R50x1-run0-dtd", (384, 384, "bilinear", True)),
            ("BiT-M-R152x4-run2-dtd", (480, 480, "bilinear", True)),
            ("BiT-M-R50x1-run1-cifar100", (128, 128, "bilinear", True)),
            ("R50x1_224", (224, 256, "bicubic", False)),
            ("R50x1_160", (160, 182, "bicubic", False)),
            ("R152x2_T_384", (384, 384, "bicubic", False)),
        ],
    )
    def test_of_a_name(self, name, expected):
        assert transform_of(name) == expected

    def test_of_every_name(self):
        for name in bitzoo.list_models():
            facts = bitzoo.get_spec(name).preprocessing
            crop, resize, interpolation, square = transform_of(name)
            assert (crop, resize) == (facts.crop, facts.resize)
            assert (interpolation, square) == (facts.interpolation, facts.square)

    def test_pixels_go_from_minus_one_to_one(self):
        pixels = np.zeros((300, 400, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = 255, 51
        found = bitzoo.create_transform(DTD)(pixels)
        expected = torch.tensor([1.0, -0.6, -1.0]).reshape(3, 1, 1).expand(3, 384, 384)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)

    def test_of_a_file_that_says_which_release_it_is(self, small_names, tmp_path):
        released = make_checkpoint(num_classes=1000)
        path = save_safetensors(tmp_path / "m.safetensors", released, {"model": "BiT-R50x1_224"})
        model = bitzoo.create_model(path, pretrained=True)
        assert bitzoo.create_transform(model).interpolation == "bicubic"
        assert (model.info.identity.name, model.info.identity.basis) == ("BiT-R50x1_224", "stated")

    def test_of_a_file_called_like_a_release(self, small_names, tmp_path):
        released = make_checkpoint(num_classes=1000)
        path = write_npz(tmp_path / "bit_m_r50x1_ilsvrc2012.npz", released)
        model = bitzoo.create_model(path, pretrained=True)
        assert model.info.identity.basis == "file name"
        assert not model.info.identity.established
        assert model.info.license is None  # that of Google's file, and this may be another
        assert bitzoo.create_transform(model).crop == 448

    def test_of_a_file_called_like_a_release_with_other_classes(
        self, small_names, arrays, tmp_path
    ):
        path = write_npz(tmp_path / "bit_m_r50x1_ilsvrc2012.npz", arrays)
        assert bitzoo.info(path).identity.name is None
        assert bitzoo.info(path).preprocessing is None

    def test_of_a_file_called_like_another_network(self, arrays, tmp_path, caplog):
        path = write_npz(tmp_path / "bit_m_r50x1_ilsvrc2012.npz", arrays)
        model = bitzoo.create_model(path, pretrained=True)
        assert model.info.identity.name is None
        transform = bitzoo.create_transform(model)
        assert (transform.crop, transform.resize, transform.square) == (224, 256, False)
        assert "Named like BiT-M-R50x1-ILSVRC2012" in messages(caplog)[0]
        assert "does not state how to prepare images" in messages(caplog)[1]

    @pytest.mark.parametrize(
        "config",
        [
            {"input_size": [3, 160, 160], "crop_pct": 0.875, "interpolation": "bicubic"},
            {"input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bilinear"},
            {"input_size": [3, 64, 64], "crop_pct": 1.0, "crop_mode": "squash"},
        ],
    )
    def test_of_a_config_is_timms(self, arrays, tmp_path, config):
        statistics = {"mean": [0.5] * 3, "std": [0.5] * 3}
        transform = bitzoo.create_transform(self.load(arrays, tmp_path, config | statistics))
        timms = timm.data.create_transform(**{"interpolation": "bilinear"} | config | statistics)
        pixels = np.random.default_rng(0).integers(0, 256, (270, 200, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        torch.testing.assert_close(transform(image), timms(image), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("crop", "resize"), [(96, 118), (160, 182), (224, 256), (96, 653)])
    def test_of_a_config_that_was_made_of_sizes(self, arrays, tmp_path, crop, resize):
        config = {"input_size": [3, crop, crop], "crop_pct": crop / resize}
        transform = bitzoo.create_transform(self.load(arrays, tmp_path, config))
        assert (transform.crop, transform.resize) == (crop, resize)

    def test_of_a_short_config(self, arrays, tmp_path):
        model = self.load(arrays, tmp_path, {"input_size": [3, 80, 80], "crop_pct": None})
        assert transform_of(model) == (80, 80, "bilinear", False)

    @pytest.mark.parametrize(
        ("config", "says"),
        [
            ({"crop_pct": 0.9}, r"cannot be read \(KeyError: 'input_size'\)"),
            ({"input_size": 224}, "cannot be read"),
            ({"input_size": [3, 1, "x"]}, "cannot be read"),
            ([1], "cannot be read"),
            ({"input_size": [3, 64, 64], "mean": [0.485, 0.456, 0.406]}, r"mean .*\[0\.485"),
        ],
    )
    def test_of_a_wrong_config(self, arrays, tmp_path, config, says):
        model = self.load(arrays, tmp_path, config)
        with pytest.raises(CheckpointError, match=rf"pretrained_cfg in config\.json.*{says}"):
            bitzoo.create_transform(model)

    @staticmethod
    def load(arrays, folder, pretrained_cfg):
        save_safetensors(folder / "model.safetensors", arrays)
        (folder / "config.json").write_text(json.dumps({"pretrained_cfg": pretrained_cfg}))
        return bitzoo.create_model(folder, pretrained=True)


class TestLabels:
    @pytest.mark.parametrize(
        ("name", "count", "index", "word"),
        [
            ("BiT-S-R50x1", 1000, 285, "Egyptian cat"),
            ("R50x1_224", 1000, 0, "tench, Tinca tinca"),
            ("BiT-M-R152x4", 21843, 21842, "knothole"),
        ],
    )
    def test_of_a_name(self, name, count, index, word):
        names = bitzoo.labels(name)
        assert len(names) == count
        assert names[index].startswith(word)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            (
                DTD,
                "Released without class names; their order is that of dtd in tensorflow_datasets.",
            ),
            ("BiT-L-R50x1", "The class names of JFT-300M are not public."),
        ],
    )
    def test_none_with_a_reason(self, caplog, name, reason):
        assert bitzoo.labels(name) is None
        assert messages(caplog) == [reason]

    def test_of_a_folder(self, folder):
        model = bitzoo.create_model(folder / "model", pretrained=True)
        assert bitzoo.labels(model) == [f"class {i}" for i in range(CLASSES)]
        assert transform_of(model) == (96, 109, "bilinear", False)

    def test_words_for_ids(self, arrays, tmp_path):
        save_safetensors(tmp_path / "model.safetensors", arrays)
        config = {
            "label_names": [f"n{i}" for i in range(CLASSES)],
            "label_descriptions": {"n0": "tench", "n9": "hen"},
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        names = bitzoo.labels(bitzoo.create_model(tmp_path, pretrained=True))
        assert names == ["tench", *(f"n{i}" for i in range(1, 9)), "hen"]

    @pytest.mark.parametrize(
        ("options", "reason"),
        [({"num_classes": 3}, "this model has another head"), ({"num_classes": 0}, "no head")],
    )
    def test_of_another_head(self, folder, caplog, options, reason):
        model = bitzoo.create_model(folder / "model", pretrained=True, **options)
        caplog.clear()
        assert bitzoo.labels(model) is None
        assert len(messages(caplog)) == 1
        assert reason in messages(caplog)[0]

    def test_of_feature_maps(self, folder):
        model = bitzoo.create_model(folder / "model", pretrained=True, features_only=True)
        assert bitzoo.labels(model) is None

    def test_of_ones_own_file(self, folder, caplog):
        assert bitzoo.labels(bitzoo.create_model(folder / "own.npz", pretrained=True)) is None
        assert "This model has no class names" in messages(caplog)[0]

    def test_of_a_network_that_create_model_did_not_make(self):
        assert bitzoo.labels(BiT(Architecture(TINY, 0.5), 10)) is None
