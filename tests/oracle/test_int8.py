"""int8 files: what is stored, what was judged, and what is refused, run by the plain runtimes."""

import csv
import hashlib
import importlib
import importlib.util
import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from click.testing import CliRunner
from images import write_digits
from PIL import Image

import bitzoo
from bitzoo.cli.main import app
from bitzoo.errors import AccuracyLossError, MissingExtraError, UsageError
from bitzoo.exporters import probe
from bitzoo.inference.calibration import balanced, choose_images
from bitzoo.inference.exports import export
from bitzoo.inference.int8_report import Speed
from bitzoo.inference.intervals import paired_difference

onnxruntime: Any = importlib.import_module("onnxruntime")  # it has no types
HAS_NNCF = importlib.util.find_spec("nncf") is not None

pytestmark = pytest.mark.slow
NAMES = {"onnx": "a.onnx", "openvino": "a.xml"}
FORMATS = [
    "onnx",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(
            not HAS_NNCF, reason="NNCF is not installed: pip install 'bitzoo[int8]'"
        ),
    ),
]
SIDE, FEW = 32, 40


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "PROBES", ((64, 1), (49, 2)))
        patch.setattr("bitzoo.inference.exports._SECONDS", 0.0)
        # pytest listens to every logger, and this one then spells out all that is traced
        patch.setattr(logging.getLogger("torch.__trace"), "level", logging.CRITICAL)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits", per_class=60)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run that holds out a third of the digits, and is right on most of them."""
    folder = tmp_path_factory.mktemp("run")
    checkpoint = write_npz(folder / "small.npz", make_checkpoint())
    bitzoo.finetune(
        checkpoint, data, folder / "run", steps=50, batch_size=32, lr=0.03, val_fraction=0.33,
        resolution=(36, SIDE), flip=False, pretrained=False, cache_gb=0,
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def exported(trained, data, tmp_path_factory):
    made = {}

    def make(to):
        if to not in made:
            path = tmp_path_factory.mktemp(to) / NAMES[to]
            # a tenth: the point here is what is recorded
            made[to] = export(
                trained,
                to,
                path,
                dtype="int8",
                calibrate=data,
                calibration_images=FEW,
                max_loss=0.1,
            )
        return made[to]

    return make


def entries(run):
    with (run / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def held_out(run, data):
    """Images (n, 3, side, side) in [-1, 1] and classes, read and resized by Pillow alone."""
    rows = [row for row in entries(run) if row["split"] == "val"]
    images = []
    for row in rows:
        image = Image.open(data / row["path"]).convert("RGB")
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        images.append(np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1)
    return np.stack(images), np.array([int(row["label"]) for row in rows])


def run_plainly(to, path, images):
    if to == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {"images": x[None]})[0] for x in images])
    network = openvino.Core().compile_model(path, "CPU")
    return np.concatenate([network(x[None])[0].copy() for x in images])


def quantized_kernels(to, path):
    """Pairs of int8 kernels and their scales, one per output channel, read from the graph."""
    if to == "onnx":
        graph = onnx.load(path).graph
        stored = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        made = {node.output[0]: node for node in graph.node}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        pairs = []
        for node in convolutions:
            widening = made[node.input[1]]
            assert widening.op_type == "DequantizeLinear"
            pairs.append((stored[widening.input[0]], stored[widening.input[1]]))
            assert made[node.input[0]].op_type == "DequantizeLinear"
        return pairs
    pairs = []
    for operation in openvino.Core().read_model(path).get_ops():
        if operation.get_type_name() == "Convolution":
            scaling = operation.input_value(1).get_node()
            assert scaling.get_type_name() == "Multiply"
            widened, scale = (scaling.input_value(number).get_node() for number in (0, 1))
            pairs.append((widened.input_value(0).get_node().data, scale.data))
    return pairs


def standardized_kernels(run):
    """The kernels that the network convolves with, by NumPy in float64."""
    state = bitzoo.create_model(run, pretrained=True).state_dict()
    for tensor in state.values():
        if tensor.ndim == 4 and tensor.shape[-1] + tensor.shape[1] > 1:
            kernel = tensor.numpy().astype(np.float64)
            rest = kernel.reshape(len(kernel), -1)
            mean, variance = (f(axis=1).reshape(-1, 1, 1, 1) for f in (rest.mean, rest.var))
            yield (kernel - mean) / np.sqrt(variance + 1e-10)


class TestTheFile:
    @pytest.mark.parametrize("to", FORMATS)
    def test_has_the_networks_kernels_rounded_to_7_bits(self, exported, trained, to):
        report = exported(to)
        stored = quantized_kernels(to, report.path)
        expected = [k for k in standardized_kernels(trained) if len(k) != 10]  # but the head's
        assert len(stored) == len(expected) == report.quantization.kernels == report.quantization.of
        for rounded, scale in stored:
            assert rounded.dtype == np.int8
            assert np.abs(rounded.astype(int)).max() in (63, 64)
            assert scale.size == len(rounded)
            step = scale.astype(np.float64).reshape(-1, 1, 1, 1)
            near = [
                number
                for number, kernel in enumerate(expected)
                if kernel.shape == rounded.shape
                and (np.abs(rounded * step - kernel) <= 0.5001 * step + 1e-6).all()
            ]
            assert near, rounded.shape
            del expected[near[0]]

    @pytest.mark.parametrize("to", FORMATS)
    def test_computes_what_was_judged(self, exported, trained, data, to):
        report = exported(to)
        images, classes = held_out(trained, data)
        network = bitzoo.create_model(trained, pretrained=True).eval()
        with torch.inference_mode():
            exact = network(torch.from_numpy(images)).numpy()
        found = run_plainly(to, report.path, images)
        was, now = (logits.argmax(1) == classes for logits in (exact, found))
        assert was.mean() > 0.6  # it has learnt
        record = json.loads(report.report.read_text())
        assert record == report.to_dict()
        assert record["count"] == len(images) == 198
        assert (record["float32"]["correct"], record["int8"]["correct"]) == (was.sum(), now.sum())
        assert record["right_to_wrong"] == (was & ~now).sum()
        assert record["wrong_to_right"] == (~was & now).sum()
        assert record["same_top1"] == (exact.argmax(1) == found.argmax(1)).sum()
        assert record["loss"] == pytest.approx((was.sum() - now.sum()) / 198)
        distance = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        assert record["relative_l2"] == pytest.approx(distance, rel=0.02)
        assert 1e-3 < distance < 0.1

    @pytest.mark.parametrize("to", FORMATS)
    def test_what_is_recorded(self, exported, to):
        report = exported(to)
        record = report.to_dict()
        digest = hashlib.sha256(report.path.read_bytes()).hexdigest()
        assert record["files"][report.path.name] == digest
        assert record["calibration"]["images"] == FEW
        assert record["calibration"]["images_of_a_class"] == [4, 4]
        assert record["bytes"]["int8"] < 0.4 * record["bytes"]["float32"]
        assert [speed["batch"] for speed in record["speed"]] == [1, 8]
        assert all(speed["int8_ms"] > 0 for speed in record["speed"])
        assert record["dtype"] == "int8"
        assert all(judged["passed"] for judged in record["float32_file"]["judged"])
        said = {k: v for k, v in record.items() if k not in ("float32_file", "model_info")}
        assert "equal" not in json.dumps(said).lower()
        facts = facts_of(to, report.path)
        assert facts["kernels"] == "standardized once, stored as int8; for inference only"
        assert json.loads(facts["calibration"]) == record["calibration"]
        assert facts["num_classes"] == "10"
        source = Path(probe.__file__).parents[2]
        for place in report.path.parent.iterdir():
            assert str(source).encode() not in place.read_bytes()


def facts_of(to, path):
    if to == "onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    stored = openvino.Core().read_model(path).get_rt_info("bitzoo").value
    return {key: getattr(value, "value", value) for key, value in stored.items()}


class TestTheImages:
    def choose(self, run, data, **changes):
        network = bitzoo.create_model(run, pretrained=True)
        options = {"to_calibrate": FEW, "to_judge": 1000, "seed": 0} | changes
        return choose_images(network, "it", str(data), **options)

    def test_of_a_run_are_trained_on_and_held_out(self, trained, data):
        chosen = self.choose(trained, data)
        split = {row["path"]: row for row in entries(trained)}
        hashes = []
        for example in chosen.calibration.examples:
            assert split[example.key]["split"] == "train"
            hashes.append(hashlib.sha256((data / example.key).read_bytes()).hexdigest())
        keys = {example.key for example in chosen.judged.examples}
        assert keys == {path for path, row in split.items() if row["split"] == "val"}
        lines = "".join(f"{one}\n" for one in sorted(hashes))
        assert chosen.fingerprint == hashlib.sha256(lines.encode()).hexdigest()
        again = self.choose(trained, data)
        assert again.calibration == chosen.calibration
        other = self.choose(trained, data, seed=1)
        assert other.fingerprint != chosen.fingerprint
        assert other.judged == chosen.judged

    def test_of_other_data_are_divided_and_copies_stay_together(self, trained, tmp_path):
        """Data that the run has never seen, with each image there twice."""
        photos = write_digits(tmp_path / "new", per_class=8, val_per_class=61)
        photos = photos / "val"
        for path in sorted(photos.rglob("*.png"))[:100]:
            Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
            (path.parent / f"copy-{path.name}").write_bytes(path.read_bytes())
        chosen = choose_images(
            bitzoo.create_model(trained, pretrained=True), "it", str(photos),
            to_calibrate=50, to_judge=80, seed=0,
        )  # fmt: skip
        ours, theirs = (
            {example.sha256 for example in split.examples}
            for split in (chosen.calibration, chosen.judged)
        )
        assert ours
        assert not ours & theirs
        assert len(chosen.judged) == 80
        assert any("Judged are 80 of" in note for note in chosen.notes)

    def test_that_were_all_trained_on_judge_nothing(self, trained, data, tmp_path):
        for row in entries(trained):
            if row["split"] == "train":
                place = tmp_path / "seen" / row["path"]
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes((data / row["path"]).read_bytes())
        with pytest.raises(UsageError, match=r"trained on all images of .*cannot be judged"):
            self.choose(trained, tmp_path / "seen")

    def test_are_as_many_of_each_class_as_there_are(self, trained, data):
        examples = self.choose(trained, data).judged.examples
        names = [str(digit) for digit in range(10)]
        few = [e for e in examples if e.label > 1] + [e for e in examples if e.label == 1][:2]
        taken = balanced(few, names, 47, seed=0)
        counts = np.bincount([example.label for example in taken], minlength=10)
        assert counts.sum() == 47
        assert counts[:2].tolist() == [0, 2]
        assert set(counts[2:].tolist()) == {5, 6}


class TestWhatIsRefused:
    def test_a_loss_beyond_what_is_allowed(self, trained, data, tmp_path):
        """Ranges measured on black images cut off what the held-out ones have."""
        black = tmp_path / "data"
        for row in entries(trained):
            part = "val" if row["split"] == "val" else "train"
            place = black / part / row["label"] / Path(row["path"]).name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((data / row["path"]).read_bytes())
            if part == "train":
                shade = int(place.stem) % 8
                Image.new("L", (8, 8), shade).save(place)
        out = tmp_path / "out"
        out.mkdir()
        with pytest.raises(AccuracyLossError, match="so nothing was kept") as raised:
            export(
                trained, "onnx", out / "a.onnx", dtype="int8", calibrate=black,
                calibration_images=20,
            )  # fmt: skip
        report: Any = raised.value.report
        assert raised.value.exit_code == 1
        assert report.compared.loss > 0.01
        assert f"is a loss of {report.compared.loss:.2%}, and 1.00% is allowed" in str(raised.value)
        assert '`dtype="float16"`' in str(raised.value)
        assert list(out.iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"dtype": "int8"}, "Give them with `calibrate`"),
            ({"calibrate": "photos"}, "`calibrate` is for int8 kernels, found it with float32"),
            ({"dtype": "int8", "calibrate": "x", "max_loss": 2}, "must be a share from 0 to 1"),
            (
                {"dtype": "int8", "calibrate": "x", "calibration_images": 0},
                "`calibration_images` must be at least 1, found 0",
            ),
            ({"dtype": "int8", "calibrate": "x", "to": "torch-export"}, "as onnx or openvino"),
            ({"dtype": "int4"}, "must be one of float32, float16, bfloat16, int8, found 'int4'"),
        ],
    )
    def test_options_that_cannot_be(self, trained, tmp_path, options, says):
        to = options.pop("to", "onnx")
        name = {"onnx": "a.onnx", "torch-export": "a.pt2"}[to]
        with pytest.raises(UsageError, match=says):
            export(trained, to, tmp_path / name, **options)
        assert list(tmp_path.iterdir()) == []

    def test_without_nncf(self, trained, data, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "nncf", None)
        with pytest.raises(MissingExtraError, match=r"needs nncf.*bitzoo\[int8\]"):
            export(trained, "openvino", tmp_path / "a.xml", dtype="int8", calibrate=data)
        assert list(tmp_path.iterdir()) == []


def test_without_labels_agreement_is_judged(trained, data, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(data.rglob("*.png"))[::4]:
        (photos / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "a.onnx"
    result = CliRunner().invoke(
        app,
        ["export", str(trained), "--to", "onnx", "--out", str(out), "--dtype", "int8", "--json",
         "--calibrate", str(photos), "--calibration-images", "40", "--max-loss", "0.2"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["judged_by"] == "agreement"
    assert (record["float32"], record["int8"], record["right_to_wrong"]) == (None, None, None)
    held = {Path(row["path"]).name for row in entries(trained) if row["split"] == "val"}
    assert record["count"] == len(held & {path.name for path in photos.iterdir()}) > 20
    assert record["loss"] == (record["count"] - record["same_top1"]) / record["count"]
    assert any("only agreement with the float32 file" in note for note in record["notes"])


class TestFigures:
    @pytest.mark.parametrize(("lost", "gained", "count"), [(12, 3, 200), (0, 0, 40), (5, 0, 5)])
    def test_the_interval_of_a_paired_difference(self, lost, gained, count):
        """By the variance of a multinomial draw, written apart."""
        cells = np.array([lost, gained, (count - lost - gained) / 2, (count - lost - gained) / 2])
        cells = cells + 0.5
        p, total = cells / cells.sum(), cells.sum()
        contrast = np.array([1, -1, 0, 0])
        variance = (np.diag(p) - np.outer(p, p)) / total
        middle = contrast @ p
        reach = 1.959963984540054 * math.sqrt(contrast @ variance @ contrast)
        expected = max(-1, middle - reach), min(1, middle + reach)
        assert paired_difference(lost, gained, count) == pytest.approx(expected)

    def test_faster_is_what_is_faster_by_both_measures(self):
        busy = Speed(1, (9.0, 9.0, 1.0), (1.0, 1.0, 1.0))
        assert (busy.ratio, busy.best_ratio, busy.pays) == (9.0, 1.0, False)
        assert Speed(8, (3.0, 4.0, 5.0), (2.0, 2.0, 4.0)).pays
