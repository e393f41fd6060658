"""VTAB's means by `bitzoo reproduce`: two tasks of tiny data, recomputed apart."""

import json
import os
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from PIL import Image
from vtab_records import prepare

import bitzoo
from bitzoo.catalogue import claims, registry
from bitzoo.data.problems import DatasetError
from bitzoo.inference.evaluate import evaluate
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.runs import measuring

MODEL = "BiT-M-R152x4"
TESTS = {"cifar100": "cifar100", "svhn": "svhn_cropped", "patch_camelyon": "patch_camelyon"}
"""Task -> its TFDS data set, whose split `test` it is tested on."""
VERSIONS = {"cifar100": "3.0.2", "svhn_cropped": "3.1.0", "patch_camelyon": "2.0.0"}


@pytest.fixture(autouse=True, scope="module")
def _tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITZOO_CACHE", str(folder / "cache"))
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        patch.setitem(ARCHITECTURES, "R152x4", Architecture((1, 1, 1, 1), 0.5))
        spec = replace(registry.get_spec(MODEL), num_classes=10)
        patch.setitem(registry._catalogue(), spec.name, spec)
        patch.setitem(registry._index(), registry._key(spec.name), spec)
        for name in TESTS.values():
            prepare(folder / "tfds", name)
        yield folder


def accuracies(weights, size):
    """Percent right of each task's test images, read by TFDS and resized by PIL."""
    import tensorflow_datasets as tfds

    found = {}
    for task, place in weights.items():
        builder = tfds.builder(TESTS[task], data_dir=os.environ["TFDS_DATA_DIR"])
        rows = list(builder.as_data_source(split="test"))
        pixels = np.stack(
            [
                np.asarray(
                    Image.fromarray(row["image"]).resize((size, size), Image.Resampling.BILINEAR),
                    np.float32,
                )
                for row in rows
            ]
        )
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
        labels = torch.tensor([int(row["label"]) for row in rows])
        network = bitzoo.create_model(place, pretrained=True).eval()
        with torch.no_grad():
            best = torch.cat([network(part).argmax(1) for part in images.split(64)])
        found[task] = 100 * float((best == labels).double().mean())
    return found


def check(found, scores, runs):
    """Compare a result with the accuracies of each run and task."""
    medians = {task: statistics.median(run[task] for run in scores) for task in scores[0]}
    means = [statistics.fmean(run.values()) for run in scores]
    measured = found["measured"]
    assert measured["value"] == pytest.approx(statistics.fmean(medians.values()))
    assert measured["runs"] == pytest.approx(means)
    assert (measured["lowest"], measured["highest"]) == pytest.approx((min(means), max(means)))
    assert measured["interval"] == f"lowest and highest of {runs} runs"
    natural = statistics.fmean(medians[task] for task in medians if task != "patch_camelyon")
    groups = {"natural": natural}
    if "patch_camelyon" in medians:
        groups["specialized"] = medians["patch_camelyon"]
    assert measured["parts"] == pytest.approx({**groups, **medians})
    assert measured["versions"] == {TESTS[task]: VERSIONS[TESTS[task]] for task in medians}
    assert "The mean is of 2 of the 19 tasks, so it is another figure." in found["departures"]


@pytest.mark.slow
def test_by_training(tmp_path, monkeypatch):
    known = claims._claims()
    (own,) = (claim for claim in known[MODEL] if claim.id == "vtab-1k")
    short = replace(own.protocol, options={"batch_size": 8, "resolution": (36, 32)})
    monkeypatch.setitem(known, MODEL, (replace(own, protocol=short),))
    base = write_npz(tmp_path / f"{MODEL}.npz", make_checkpoint(num_classes=10))
    said: list[str] = []
    result = bitzoo.reproduce(
        base, "vtab-1k", out=tmp_path / "out", runs=2, steps=1, tasks="cifar100,patch_camelyon",
        workers=1, seed=1, say=said.append,
    )  # fmt: skip
    found = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert found == json.loads(json.dumps(result.to_dict()))
    runs = tmp_path / "out" / "runs"
    tasks = ("cifar100", "patch_camelyon")
    folders = [{task: runs / task / f"seed-{seed}" for task in tasks} for seed in (1, 2)]
    check(found, [accuracies(run, 32) for run in folders], 2)
    assert found["published"]["value"] == 70.64
    assert "2 runs instead of 3." in found["departures"]
    assert "1 step per run instead of the rule's." in found["departures"]
    assert found["departures"][-1] == own.protocol.differences[0]


class TestReleasedRuns:
    @pytest.fixture
    def files(self, tmp_path, monkeypatch):
        """What Google's bucket has: run 0 and 1 of two tasks."""
        monkeypatch.setattr(
            measuring,
            "evaluate",
            lambda name, **options: evaluate(tmp_path / f"{name}.npz", **options),
        )
        runs: list[dict[str, Path]] = []
        for run in (0, 1):
            runs.append({})
            for number, (task, classes) in enumerate((("cifar100", 100), ("svhn", 10))):
                path = tmp_path / f"{MODEL}-run{run}-{task}.npz"
                arrays = make_checkpoint(num_classes=classes, seed=10 * run + number)
                runs[-1][task] = write_npz(path, arrays)
        return runs

    def test_they_are_evaluated_each_on_its_task(self, files, tmp_path):
        result = bitzoo.reproduce(
            MODEL, "vtab-1k-rerun", runs=2, tasks=["svhn", "cifar100"], workers=1,
            out=tmp_path / "out",
        )  # fmt: skip
        found = json.loads((tmp_path / "out" / "reproduce.json").read_text())
        check(found, [accuracies(run, 128) for run in files], 2)
        assert found["published"]["parts"]["natural"] == 80.77
        rows = dict(result.display_rows())
        assert (
            rows["natural"] == f"{found['measured']['parts']['natural']:.2f} % (published 80.77 %)"
        )
        assert found["departures"][:2] == [
            "2 runs instead of 3.",
            "Only the tasks svhn, cifar100.",
        ]

    def test_tasks_that_are_not_prepared(self, files):
        result = bitzoo.reproduce(MODEL, "vtab-1k-rerun", runs=1, tasks="cifar100,dtd", workers=1)
        expected = accuracies(files[0], 128)["cifar100"]
        measured = result.measured
        assert measured.value == pytest.approx(expected)
        share = expected / 100
        reach = 100 * 1.959964 * (share * (1 - share) / 30) ** 0.5
        assert measured.lowest == pytest.approx(expected - reach)
        assert measured.highest == pytest.approx(expected + reach)
        assert "Not prepared and left out: dtd." in result.departures
        with pytest.raises(DatasetError, match="None of the tasks is prepared"):
            bitzoo.reproduce(MODEL, "vtab-1k-rerun", runs=1, tasks="dtd")
