"""`bitzoo.probe` against features of the plain network and a ridge classifier written apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from images import write_digits
from PIL import Image
from planted import make_planted_checkpoint, write_planted_images

import bitzoo
from bitzoo.errors import UsageError
from bitzoo.inference import features, runner
from bitzoo.runs import probe_features, probe_models
from bitzoo.runs.probe_models import find_candidates
from bitzoo.runs.probe_result import Probed, advise

SMALL: dict[str, Any] = {"resolution": (32, 32), "workers": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Planted images, digits without a split, and checkpoints: two planted, four random."""
    folder = tmp_path_factory.mktemp("probe")
    write_planted_images(folder / "stripes", per_class=12)
    write_digits(folder / "digits", per_class=9, classes=range(4), size=32)
    kinds = {
        "planted-a": make_planted_checkpoint((1, 1, 1, 1), 1),
        "planted-b": make_planted_checkpoint((1, 2, 1, 1), 1),
        "random-a": make_checkpoint((1, 1, 1, 1), 0.5, seed=1),
        "random-b": make_checkpoint((2, 1, 1, 1), 0.5, seed=2),
        "random-c": make_checkpoint((1, 1, 2, 1), 0.5, seed=3),
        "random-d": make_checkpoint((1, 1, 1, 2), 0.5, seed=4),
    }
    for name, arrays in kinds.items():
        write_npz(folder / f"{name}.npz", arrays)
    return folder


@pytest.fixture
def here(place, monkeypatch, tmp_path):
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(place)
    return place


def test_the_two_planted_of_six_architectures_rank_first(here, tmp_path):
    names = [f"{name}.npz" for name in ("random-a", "planted-a", "random-b", "random-c")]
    names += ["planted-b.npz", "random-d.npz"]
    told: list[str] = []
    result = bitzoo.probe("stripes", names, folds=4, out=tmp_path / "p", say=told.append, **SMALL)
    first, second, *others = result.models
    assert {first.model, second.model} == {"planted-a.npz", "planted-b.npz"}
    assert (first.correct, second.correct, first.count) == (48, 48, 48)
    assert (first.correct_lsr, second.correct_lsr) == (48, 48)
    assert all(row.outcome == "done" and row.correct <= 24 for row in others), result
    assert {row.architecture for row in result.models} == {
        "R(1,1,1,1)x1",
        "R(1,2,1,1)x1",
        "R(1,1,1,1)x0.5",
        "R(2,1,1,1)x0.5",
        "R(1,1,2,1)x0.5",
        "R(1,1,1,2)x0.5",
    }
    assert result.advice.take == first.model
    assert first.images_per_s is not None
    assert second.images_per_s is not None
    assert first.images_per_s > second.images_per_s  # of two equal ones, the faster
    assert "Always naming the most frequent class would be right for 25.0%." in told
    record = json.loads((tmp_path / "p/probe.json").read_text())
    assert [row["model"] for row in record["models"]] == [row.model for row in result.models]
    page = (tmp_path / "p/report.html").read_text()
    assert page.count('class="dot ') == 6
    assert f"<h2>Take {first.model}</h2>" in page


# --- one model by hand ----------------------------------------------------------------------------


def plain_features(path, files):
    """What comes before the head, by the plain network; and the classes, by folder."""
    network = bitzoo.create_model(path, True, num_classes=0).eval()
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        found = network(images).numpy().astype(np.float64)
    names = sorted({file.parent.name for file in files})
    return found, np.array([names.index(file.parent.name) for file in files])


class ByHand:
    """big_vision's ridge in float64, always in its dual form, by a plain solver."""

    def __init__(self, x, y, classes):
        self.mean, self.std = x.mean(0), x.std(0) + 1e-5
        self.constant = np.ptp(x, axis=0) == 0
        self.x, self.y = self.prepared(x), y
        self.targets = np.where(np.arange(classes) == y[:, None], 1.0, -1.0)

    def prepared(self, x):
        standard = (x - self.mean) / self.std
        standard[:, self.constant] = 0
        return np.hstack([standard, np.full((len(x), 1), 100.0)])

    def scores(self, test, l2):
        kernel = self.x @ self.x.T + l2 * np.eye(len(self.x))
        return self.prepared(test) @ (self.x.T @ np.linalg.solve(kernel, self.targets))

    def left_out(self, l2):
        """Hits and squared error, each example by a classifier that is solved without it."""
        found = np.empty_like(self.targets)
        for row in range(len(self.x)):
            kept = np.arange(len(self.x)) != row
            x = self.x[kept]
            dual = np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), self.targets[kept])
            found[row] = self.x[row] @ (x.T @ dual)
        hits = int((found.argmax(1) == self.y).sum())
        return hits, float(((found - self.targets) ** 2).mean())

    def best(self):
        judged = {2.0**power: self.left_out(2.0**power) for power in range(-10, 21)}
        return max(judged, key=lambda l2: (judged[l2][0], -judged[l2][1], l2)), judged


def split_of(folder):
    """Training and held-out files, as the saved probe recorded them."""
    lines = [line.split(",") for line in (folder / "split.csv").read_text().splitlines()[1:]]
    return tuple(
        sorted(Path("digits", line[0]) for line in lines if line[2] == split)
        for split in ("train", "val")
    )


def test_it_is_the_ridge_classifier_of_the_formula(here, tmp_path):
    result = bitzoo.probe("digits", ["random-a.npz"], save=tmp_path / "m", **SMALL)
    (row,) = result.models
    train, val = split_of(tmp_path / "m")
    assert (len(train), len(val)) == (32, 4)
    x, y = plain_features("random-a.npz", train)
    test, truth = plain_features("random-a.npz", val)
    hand = ByHand(x, y, 4)
    l2, judged = hand.best()
    assert row.l2 == (l2,)
    assert row.left_out == judged[l2][0] / 32
    expected = hand.scores(test, l2)
    assert row.correct == int((expected.argmax(1) == truth).sum())
    assert row.correct_lsr == int((hand.scores(test, 1024.0).argmax(1) == truth).sum())
    # the saved network is that classifier
    network = bitzoo.create_model(tmp_path / "m", pretrained=True)
    transform = bitzoo.create_transform(network)
    with torch.no_grad():
        logits = network(torch.stack([transform(file) for file in val])).numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-4)
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))


def test_folds_judge_every_image_once(here, tmp_path):
    result = bitzoo.probe("digits", ["random-a.npz"], folds=4, save=tmp_path / "m", **SMALL)
    (row,) = result.models
    assert (row.count, len(row.l2), result.settings["folds"]) == (36, 4, 4)
    assert result.judged == (
        "all 36 images in 4 stratified folds, drawn with seed 0, each judged by the classifier of "
        "the others"
    )
    train, val = split_of(tmp_path / "m")
    assert (len(train), len(val)) == (36, 0)  # what is saved learned from all
    assert not (tmp_path / "m/evaluation.json").exists()
    assert f"{row.top1:.2%}" in (tmp_path / "m/README.md").read_text()


# --- what is kept, what is left out ---------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch):
    """The numbers of images that networks were given."""
    counts = []

    class Counting(runner.Runner):
        def __call__(self, pixels):
            counts.append(len(pixels))
            return super().__call__(pixels)

    monkeypatch.setattr(features, "Runner", Counting)
    return counts


def test_a_second_call_computes_nothing(here, computed):
    first = bitzoo.probe("digits", ["random-a.npz"], **SMALL)
    assert sum(computed) == 36
    again = bitzoo.probe("digits", ["random-a.npz"], folds=3, **SMALL)
    assert sum(computed) == 36
    assert first.models[0].computed == 36
    assert again.models[0].computed == 0
    for name in ("images_per_s", "memory_bytes"):  # as they were measured then
        assert getattr(again.models[0], name) == getattr(first.models[0], name) > 0


def test_the_time_limit_and_ctrl_c_keep_what_is_done(here, computed, monkeypatch, tmp_path):
    monkeypatch.setattr(features, "BATCH", 10)
    reached = [False]
    monkeypatch.setattr(probe_features.TimeLimit, "is_reached", property(lambda own: reached[0]))

    def progress(task, done, total):
        if task == "features" and done == 20:
            reached[0] = True

    names = ["random-a.npz", "planted-a.npz"]
    result = bitzoo.probe("digits", names, time_limit="1h", progress=progress, **SMALL)
    assert [row.outcome for row in result.models] == ["not tried", "not tried"]
    assert [row.reason for row in result.models] == [
        "the time limit was reached: the features of 20 of 36 images are computed and kept",
        "the time limit was reached before it",
    ]
    assert result.advice.take is None
    assert sum(computed) == 20
    reached[0] = False

    def interrupt(task, done, total):
        if task == "features" and done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bitzoo.probe("digits", names, progress=interrupt, out=tmp_path / "p", **SMALL)
    assert sum(computed) == 30
    result = bitzoo.probe("digits", names, out=tmp_path / "p", **SMALL)
    assert sum(computed) == 72
    assert {row.model: row.computed for row in result.models} == dict(
        zip(names, (6, 36), strict=True)
    )


def test_what_cannot_be_used_is_a_row(here, tmp_path, monkeypatch):
    (tmp_path / "note.npz").write_bytes(b"no checkpoint")
    write_npz(tmp_path / "grey.npz", make_checkpoint(in_chans=1))
    bad = ["gone.npz", "BiT-X", "BiT-Z-*", str(tmp_path / "note.npz"), str(tmp_path / "grey.npz")]
    result = bitzoo.probe("digits", [*bad, "random-a.npz"], **SMALL)
    assert [row.model for row in result.done] == ["random-a.npz"]
    why = {row.model: row.reason for row in result.left}
    assert {row.outcome for row in result.left} == {"failed"}
    assert "expected a checkpoint file or a run folder, found nothing there" in why["gone.npz"]
    assert "BiT-X" in why["BiT-X"]
    assert why["BiT-Z-*"].startswith("No model of the catalogue matches 'BiT-Z-*'.")
    assert "expected a BiT checkpoint" in why[bad[3]]
    assert "takes images of 1 channels; expected 3" in why[bad[4]]
    monkeypatch.setattr(probe_features, "free_memory", lambda device: 10**6)
    (row,) = bitzoo.probe("digits", ["random-b.npz"], **SMALL).models
    assert row.outcome == "failed"
    assert "and 0.0 GB are free." in row.reason


def test_a_run_that_was_trained_on_the_judged_images_is_not_advised(here, tmp_path):
    own = {"val_fraction": 0.25, "save": tmp_path / "m"}
    bitzoo.probe("digits", ["random-a.npz"], seed=1, **own, **SMALL)
    result = bitzoo.probe("digits", ["random-a.npz", tmp_path / "m"], seed=2, **SMALL)
    by_name = {row.model: row for row in result.models}
    judged = by_name[str(tmp_path / "m")]
    assert judged.trained_on is not None
    assert 0 < judged.trained_on <= judged.count
    assert by_name["random-a.npz"].trained_on is None
    assert result.advice.take == "random-a.npz"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"folds": 1}, "`folds` must be a whole number of at least 2, found 1"),
        ({"folds": 3, "val_fraction": 0.2}, "`val_fraction` would mean nothing"),
        ({"val_fraction": 0.0}, "A probe needs images to be judged on"),
        ({"take": "a"}, "Say where, with `save`"),
        ({"take": "a", "save": "m"}, "one of the models that are tried .random-a.npz., found 'a'"),
        ({"time_limit": "soon"}, "`time_limit` must be a duration"),
        ({"models": []}, "`models` must name at least one model"),
        ({"models": None}, "There are no weights of the catalogue on this machine"),
        ({"out": "stripes"}, "has files but no probe in it"),
        ({"save": "stripes"}, "has files but no probe in it"),
    ],
)
def test_what_cannot_be(here, options, says):
    with pytest.raises(UsageError, match=says):
        bitzoo.probe("digits", **{"models": ["random-a.npz"], **SMALL, **options})


def test_patterns_take_what_is_on_this_machine(monkeypatch):
    there = {"BiT-M-R101x1", "BiT-S-R50x1"}
    monkeypatch.setattr(probe_models, "_is_here", there.__contains__)
    found = find_candidates(["BiT-M-R*x1", "BiT-M-R50x3"])
    # named ones in any case; fewer parameters first
    assert [own.name for own in found.models] == ["BiT-M-R101x1", "BiT-M-R50x3"]
    assert "BiT-M-R50x1" in found.not_here
    assert any("Fetch them with `download=True`" in note for note in found.notes)
    every = find_candidates(["BiT-M-R50x?"], download=True)
    assert [own.name for own in every.models] == ["BiT-M-R50x1", "BiT-M-R50x3"]
    assert [own.name for own in find_candidates(None).models] == ["BiT-S-R50x1", "BiT-M-R101x1"]
    with pytest.raises(UsageError, match="none is on this machine: BiT-M-R50x1, BiT-M-R50x3"):
        find_candidates(["BiT-M-R50x?"])


# --- which to take --------------------------------------------------------------------------------


def row(name, correct, rate=None, params=10**6, **changes):
    return Probed(
        name, "done", params=params, correct=correct, count=200, images_per_s=rate, **changes
    )


@pytest.mark.parametrize(
    ("rows", "take", "says"),
    [
        ([], None, "No model has a result, so there is none to choose."),
        ([row("a", 190)], "a", "only model with a result"),
        ([row("a", 190, 10), row("b", 150, 30)], "a", "b with 75.0 %, is outside that interval"),
        ([row("a", 190, 10), row("b", 188, 30)], "b", "it is 3.0 times as fast"),
        ([row("a", 190, 30), row("b", 188, 10)], "a", "may be chance"),
        ([row("a", 190, 10, 9), row("b", 188, None, 5)], "b", "it is smaller"),
        ([row("a", 199, 10, trained_on=3), row("b", 150, 3)], "b", "only model"),
        ([row("a", 199, 10, trained_on=3)], None, "that it was not trained on"),
    ],
)
def test_advice(rows, take, says):
    found = advise(rows)
    assert found.take == take
    assert says in found.why


def test_the_interval_decides():
    """Wilson's, of 190 of 200: from 91.04 %; worked out apart: 183 are within, 182 are not."""
    for correct, expected in ((183, "b"), (182, "a")):
        assert advise([row("a", 190, 10), row("b", correct, 30)]).take == expected
