"""Counts and losses against worked cases and scikit-learn; predictions of files good and bad."""

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import TINY, as_timm, make_checkpoint
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score
from torch import nn

from bitzoo.errors import LayoutError, UsageError
from bitzoo.inference.evaluate import evaluate_pixels
from bitzoo.inference.metrics import Confusion, Evaluation, EvaluationError
from bitzoo.inference.predict import find_images, predict_images
from bitzoo.inference.runner import Runner, one_ahead
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT, fold
from bitzoo.models.preprocessing import EvalTransform

NAMES = ("ant", "bee", "cat")
SIZE = 32


class Pixels:
    """Images in memory."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def take(self, indices):
        return self.images[indices]


class Lookup(nn.Module):
    """Returns row v of a table for an image of value v: any logits one likes."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.as_tensor(table, dtype=torch.float32)
        self.seen = []

    def forward(self, images):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.append(len(images))
        value = ((images[:, 0, 0, 0] + 1) * 127.5).round().long()
        return self.table[value]


def numbered(count):
    """Image v has the value v everywhere."""
    values = np.arange(count, dtype=np.uint8)
    return Pixels(np.broadcast_to(values[:, None, None, None], (count, 2, 2, 3)))


def make_bit(num_classes=7):
    model = BiT(Architecture(TINY, 0.5), num_classes)
    checkpoint = make_checkpoint(TINY, 0.5, num_classes)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in as_timm(checkpoint).items()})
    return model


def make_images(count, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return Pixels(np.ascontiguousarray(coarse.repeat(4, axis=1).repeat(4, axis=2)))


def forward(model, pixels):
    """Logits without any of the code under test."""
    images = torch.from_numpy(pixels.images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        return model.eval()(images.contiguous())


def same(found, expected):
    """Whether two evaluations are equal in every bit."""
    columns = ("rows", "labels", "predicted", "ranks", "scores", "losses")
    pairs = [(getattr(found, name), getattr(expected, name)) for name in columns]
    return found.classes == expected.classes and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs
    )


class TestCounts:
    # Probabilities that are easy to see: softmax of the logarithms of counts.
    LOGITS = np.log([[6, 3, 1], [2, 2, 4], [1, 8, 1], [5, 1, 4]])
    LABELS = (0, 0, 1, 2)

    @pytest.fixture
    def worked(self):
        return evaluate_pixels(Lookup(self.LOGITS), numbered(4), self.LABELS, NAMES, batch_size=3)

    def test_worked_example(self, worked):
        assert worked.predicted.tolist() == [0, 2, 1, 0]
        assert worked.ranks.tolist() == [0, 1, 0, 1]
        assert (worked.correct, worked.count, worked.top1) == (2, 4, 0.5)
        assert (worked.correct_top5, worked.top5) == (4, 1.0)  # three classes: always in the five
        np.testing.assert_allclose(worked.scores, [0.6, 0.5, 0.8, 0.5], rtol=1e-6)
        np.testing.assert_allclose(np.exp(-worked.losses), [0.6, 0.25, 0.8, 0.4], rtol=1e-6)
        assert worked.loss == pytest.approx(-math.log(0.6 * 0.25 * 0.8 * 0.4) / 4, rel=1e-6)
        assert worked.confusion.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
        assert worked.confusion.dtype == np.int64

    def test_what_went_wrong(self, worked):
        assert worked.confusions() == [Confusion(0, 2, 1), Confusion(2, 0, 1)]
        assert worked.confusions(1) == [Confusion(0, 2, 1)]
        assert worked.worst().tolist() == [1, 3]  # 0.25 for the true class before 0.4
        assert worked.worst(1).tolist() == [1]

    def test_most_frequent_confusion_first(self):
        labels, predicted = np.array([0, 2, 2, 1]), [1, 0, 0, 1]
        found = Evaluation.of_logits(NAMES, labels, np.eye(3, dtype=np.float32)[predicted])
        assert found.confusions() == [Confusion(2, 0, 2), Confusion(0, 1, 1)]

    def test_json(self, worked):
        record = json.loads(json.dumps(worked.to_dict(), allow_nan=False))
        assert record.pop("loss") == worked.loss
        assert record.pop("interval") == list(worked.interval)
        assert record.pop("interval_top5") == list(worked.interval_top5)
        assert (record.pop("matched"), record.pop("published")) == (None, [])
        assert record == {
            "top1": 0.5,
            "top5": 1.0,
            "balanced_accuracy": 0.5,  # 1/2, 1/1, 0/1
            "macro_f1": 0.5,  # ant 2/4, bee 2/2, cat 0/2
            "count": 4,
            "correct": 2,
            "correct_top5": 4,
            "per_class": [
                {"name": "ant", "count": 2, "correct": 1, "accuracy": 0.5},
                {"name": "bee", "count": 1, "correct": 1, "accuracy": 1.0},
                {"name": "cat", "count": 1, "correct": 0, "accuracy": 0.0},
            ],
        }

    def test_class_without_images_has_no_accuracy(self):
        found = Evaluation.of_logits(NAMES, np.array([1]), np.zeros((1, 3), np.float32))
        assert [row["accuracy"] for row in found.per_class] == [None, 0.0, None]

    def test_of_equal_logits_the_first_class_wins(self):
        labels = np.arange(7)
        found = Evaluation.of_logits("abcdefg", labels, np.zeros((7, 7), np.float32))
        assert found.predicted.tolist() == [0] * 7
        assert found.ranks.tolist() == list(range(7))
        assert (found.correct, found.correct_top5) == (1, 5)
        assert found.loss == pytest.approx(math.log(7), rel=1e-15)

    @pytest.mark.parametrize("classes", [2, 3, 7, 40])
    def test_against_scikit_learn(self, classes):
        rng = np.random.default_rng(classes)
        logits = rng.normal(0, 3, (200, classes)).astype(np.float32)
        labels = rng.integers(0, classes, 200)
        names = [f"class {index}" for index in range(classes)]
        found = evaluate_pixels(Lookup(logits), numbered(200), labels, names, batch_size=33)
        guess, all_labels = logits.argmax(1), np.arange(classes)
        assert found.top1 == accuracy_score(labels, guess)
        assert found.correct == accuracy_score(labels, guess, normalize=False)
        np.testing.assert_array_equal(found.confusion, confusion_matrix(labels, guess))
        if classes > 5:
            expected = top_k_accuracy_score(labels, logits, k=5, labels=all_labels)
            assert found.top5 == expected
        odds = np.exp(logits.astype(np.float64))
        expected = log_loss(labels, odds / odds.sum(1, keepdims=True), labels=all_labels)
        assert found.loss == pytest.approx(expected, rel=1e-12)

    def test_huge_logits_do_not_overflow(self):
        logits = np.array([[3e38, 0], [0, -1e30]], np.float32)
        found = Evaluation.of_logits("ab", np.array([0, 1]), logits)
        np.testing.assert_array_equal(found.losses, [0, np.float64(np.float32(1e30))])


@pytest.fixture(scope="module")
def whole():
    rng = np.random.default_rng(5)
    table, labels = rng.normal(0, 2, (100, 3)), rng.integers(0, 3, 100)
    return table, labels, evaluate_pixels(Lookup(table), numbered(100), labels, NAMES)


class TestMerge:
    @pytest.mark.parametrize("world", [1, 2, 3, 7])
    def test_processes_add_up_to_the_whole(self, whole, world):
        table, labels, expected = whole
        parts = [
            evaluate_pixels(
                Lookup(table), numbered(100), labels, NAMES, batch_size=9, rank=r, world=world
            )
            for r in range(world)
        ]
        assert parts[-1].rows.tolist() == list(range(world - 1, 100, world))
        travelled = [pickle.loads(pickle.dumps(part)) for part in reversed(parts)]
        merged = Evaluation.merge(travelled)
        assert same(merged, expected)
        assert merged.loss == expected.loss  # to the last bit: sums are exactly rounded
        assert merged.to_dict() == expected.to_dict()

    def test_a_process_may_have_nothing_to_do(self):
        parts = [
            evaluate_pixels(Lookup(np.eye(3)), numbered(2), [0, 1], NAMES, rank=rank, world=3)
            for rank in range(3)
        ]
        assert [part.count for part in parts] == [1, 1, 0]
        assert parts[2].to_dict()["top1"] is None
        assert parts[2].to_dict()["loss"] is None
        assert Evaluation.merge(parts).correct == 2

    def test_logits_are_kept_in_order_if_asked(self, whole):
        table, labels, expected = whole
        parts = [
            evaluate_pixels(
                Lookup(table),
                numbered(100),
                labels,
                NAMES,
                batch_size=8,
                keep_logits=True,
                rank=rank,
                world=2,
            )
            for rank in range(2)
        ]
        logits = Evaluation.merge(parts).logits
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, table.astype(np.float32))
        assert expected.logits is None
        assert Evaluation.merge([parts[0]]).logits is not None

    def test_refuses_what_does_not_add_up(self, whole):
        part = whole[2]
        with pytest.raises(EvaluationError, match=r"Image 0 is in two .* its own rank"):
            Evaluation.merge([part, part])
        other = Evaluation.of_logits("xyz", np.array([0]), np.eye(3, dtype=np.float32)[:1])
        with pytest.raises(EvaluationError, match=r"same classes.*found 2 of 2 different"):
            Evaluation.merge([part, other])
        with pytest.raises(EvaluationError, match="at least one; found 0"):
            Evaluation.merge([])


@pytest.fixture(scope="module")
def evaluated():
    """A network, images, labels half of which are right, and logits from plain torch."""
    model, pixels = make_bit(), make_images(12)
    logits = forward(model, pixels).numpy()
    labels = logits.argmax(1)
    labels[::2] = (labels[::2] + 1) % 7
    return model, pixels, labels, logits


class TestNetwork:
    @pytest.mark.parametrize("batch_size", [1, 5, 100])
    def test_equals_the_unfolded_network_for_any_batch_size(self, evaluated, batch_size):
        model, pixels, labels, logits = evaluated
        found = evaluate_pixels(
            model, pixels, labels, "abcdefg", batch_size=batch_size, keep_logits=True
        )
        np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
        assert found.predicted.tolist() == logits.argmax(1).tolist()
        assert (found.correct, found.count) == (6, 12)
        exact = torch.from_numpy(logits).double()
        expected = nn.functional.cross_entropy(exact, torch.from_numpy(labels)).item()
        assert found.loss == pytest.approx(expected, rel=1e-5)

    def test_bfloat16_is_near_and_has_a_float32_head(self, evaluated):
        model, pixels, labels, logits = evaluated
        options: dict[str, Any] = {"dtype": torch.bfloat16, "keep_logits": True}
        found = evaluate_pixels(model, pixels, labels, "abcdefg", **options)
        error = np.linalg.norm(found.logits - logits) / np.linalg.norm(logits)
        assert 1e-5 < error < 0.02  # bfloat16 has 8 bits: 0.4 % a rounding
        rounded = torch.from_numpy(found.logits).bfloat16().float().numpy()
        assert (rounded != found.logits).mean() > 0.9

    def test_leaves_the_model_as_it_was(self, evaluated):
        _, pixels, labels, _ = evaluated
        model = make_bit().train()
        before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
        evaluate_pixels(model, pixels, labels, "abcdefg", dtype=torch.bfloat16)
        assert model.training
        assert not model.folded
        for name, parameter in model.named_parameters():
            pointer, value = before[name]
            assert parameter.data_ptr() == pointer
            assert parameter.is_contiguous()
            assert parameter.requires_grad
            assert torch.equal(parameter, value)

    def test_leaves_a_folded_model_as_it_was(self, evaluated):
        model, pixels, labels, logits = evaluated
        folded = fold(model)
        found = evaluate_pixels(folded, pixels, labels, "abcdefg", dtype=torch.bfloat16)
        assert found.count == 12
        assert {parameter.dtype for parameter in folded.parameters()} == {torch.float32}
        np.testing.assert_allclose(forward(folded, pixels), logits, rtol=1e-4, atol=1e-4)

    def test_other_modules_return_to_training(self):
        model = Lookup(np.eye(3)).train()
        found = evaluate_pixels(model, numbered(3), [0, 1, 2], NAMES, dtype=torch.bfloat16)
        assert found.correct == 3
        assert model.training

    def test_halves_batches_that_do_not_fit(self):
        class Small(Lookup):
            def forward(self, images):
                if len(images) > 3:
                    raise torch.cuda.OutOfMemoryError("no room")
                return super().forward(images)

        model = Small(np.eye(20)[:, :3])
        found = evaluate_pixels(model, numbered(20), np.zeros(20, int), NAMES, batch_size=13)
        assert (found.correct, found.count) == (18, 20)  # rows 1 and 2 say classes 1 and 2
        assert model.seen == [3, 3, 3, 3, 1, 3, 3, 1]  # 13, 6, 3, and from then on 3

    def test_gives_up_on_a_single_image_that_does_not_fit(self):
        class Full(nn.Module):
            def forward(self, images):
                raise torch.cuda.OutOfMemoryError("no room at all")

        with pytest.raises(torch.cuda.OutOfMemoryError, match="no room at all"):
            evaluate_pixels(Full(), numbered(4), [0] * 4, NAMES)

    def test_read_only_pixels(self):
        pixels = np.zeros((2, 4, 4, 3), np.uint8)
        pixels.flags.writeable = False
        logits = Runner(Lookup([[1.0, 2.0]]), None, torch.float32)(pixels)
        assert logits.tolist() == [[1, 2], [1, 2]]

    def test_the_next_batch_is_read_while_one_is_computed(self):
        events = []
        for item, made in one_ahead("abc", lambda item: events.append(f"read {item}")):
            assert made is None
            events.append(f"use {item}")
        assert events == ["read a", "read b", "use a", "read c", "use b", "use c"]

    def test_progress(self):
        calls = []
        evaluate_pixels(
            Lookup(np.eye(3)),
            numbered(3),
            [0, 1, 2],
            NAMES,
            batch_size=2,
            progress=lambda *call: calls.append(call),
        )
        assert calls == [("evaluate", 2, 3), ("evaluate", 3, 3)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("value", "says"),
        [
            (math.nan, r"infinite or NaN for 1 of 3 images.*lower learning rate"),
            (math.inf, r"infinite or NaN for 1 of 3 images.*bfloat16 or float32"),
        ],
    )
    def test_outputs_that_are_no_numbers(self, value, says):
        table = np.eye(3)
        table[1, 2] = value
        with pytest.raises(EvaluationError, match=says):
            evaluate_pixels(Lookup(table), numbered(3), [0, 1, 2], NAMES)

    @pytest.mark.parametrize(
        ("labels", "says"),
        [
            ([0, 1, 3], r"from 0 to 2.*found 0 to 3"),
            ([-1, 0, 1], r"from 0 to 2.*found -1 to 1"),
            ([0, 1], r"must be 3 integers.*shape \(2,\)"),
            ([0.0, 1.0, 2.0], "must be 3 integers.*float64"),
        ],
    )
    def test_labels(self, labels, says):
        with pytest.raises(UsageError, match=says):
            evaluate_pixels(Lookup(np.eye(3)), numbered(3), labels, NAMES)

    def test_a_model_of_other_classes(self):
        says = r"logits of shape \(3, 2\).*found \(3, 3\)"
        with pytest.raises(LayoutError, match=says):
            evaluate_pixels(Lookup(np.eye(3)), numbered(3), [0, 1, 1], NAMES[:2])

    def test_nothing_to_do(self):
        with pytest.raises(UsageError, match="no images to evaluate"):
            evaluate_pixels(Lookup(np.eye(3)), numbered(0), [], NAMES)
        with pytest.raises(UsageError, match="`batch_size` must be at least 1, found 0"):
            evaluate_pixels(Lookup(np.eye(3)), numbered(3), [0, 1, 2], NAMES, batch_size=0)


class TestPredict:
    TRANSFORM = EvalTransform(crop=2, resize=2)
    # Logits by brightness of the image; image 1 has two equal ones.
    TABLE = np.log([[1, 2, 7], [4, 4, 2], [8, 1, 1]])

    @pytest.fixture
    def folder(self, tmp_path):
        def save(name, value):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 3), (value,) * 3).save(path)

        for name, value in (("b.png", 1), ("A.PNG", 0), ("sub/deep/c.bmp", 2), (".d.png", 0)):
            save(name, value)
        save(".hidden/e.png", 0)
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
        (tmp_path / "empty").mkdir()
        return tmp_path

    def predict(self, paths, **options):
        options = {"names": NAMES, "top": 2, "workers": 2, **options}
        return predict_images(Lookup(self.TABLE), paths, self.TRANSFORM, **options)

    def test_folders_are_expanded_in_order(self, folder):
        found = [path.relative_to(folder).as_posix() for path in find_images([folder])]
        assert found == ["A.PNG", "b.png", "broken.png", "sub/deep/c.bmp"]
        given = [folder / "notes.txt", folder / "gone", folder / "empty"]
        assert find_images(given) == given

    @pytest.mark.parametrize("batch_size", [1, 2, 50])
    def test_best_guesses_and_what_could_not_be_read(self, folder, batch_size):
        good, tied, broken, deep = self.predict([folder], batch_size=batch_size)
        assert [guess.label for guess in good.guesses] == ["cat", "bee"]
        assert [guess.index for guess in good.guesses] == [2, 1]
        assert [guess.score for guess in good.guesses] == pytest.approx([0.7, 0.2], rel=1e-6)
        assert [guess.label for guess in tied.guesses] == ["ant", "bee"]
        assert [guess.label for guess in deep.guesses] == ["ant", "bee"]
        assert deep.path == str(folder / "sub/deep/c.bmp")
        assert (good.error, deep.error, broken.guesses) == (None, None, ())
        assert "broken.png' cannot be read" in broken.error

    def test_what_is_no_image_is_a_row_of_its_own(self, folder):
        text, gone, empty = self.predict([folder / n for n in ("notes.txt", "gone", "empty")])
        assert "notes.txt' cannot be read" in text.error
        assert "gone' cannot be read" in gone.error
        assert (
            empty.error == f"The folder {str(folder / 'empty')!r} has no images in it or below it."
        )

    def test_an_image_that_the_transform_refuses(self, folder):
        Image.new("RGB", (1, 60000)).save(folder / "thin.png")
        transform = EvalTransform(crop=100, resize=100, square=False)
        (found,) = predict_images(Lookup(self.TABLE), [folder / "thin.png"], transform)
        assert "is too narrow" in found.error

    def test_sigmoid_scores(self, folder):
        (found,) = self.predict([folder / "A.PNG"], activation="sigmoid", top=3)
        # sigmoid(log(x)) is x / (1 + x)
        assert [guess.score for guess in found.guesses] == pytest.approx([7 / 8, 2 / 3, 1 / 2])

    def test_sigmoid_of_extreme_logits(self, folder):
        model = Lookup([[-1e30, 0, 1e30]])
        (found,) = predict_images(model, [folder / "A.PNG"], self.TRANSFORM, activation="sigmoid")
        assert [(guess.label, guess.score) for guess in found.guesses] == [
            ("2", 1.0),
            ("1", 0.5),
            ("0", 0.0),
        ]

    def test_json_and_progress(self, folder):
        calls = []
        paths = [folder / "A.PNG", folder / "gone", folder / "b.png"]
        found = self.predict(paths, top=1, batch_size=2, progress=lambda *call: calls.append(call))
        assert calls == [("predict", 2, 3), ("predict", 3, 3)]
        record = json.loads(json.dumps(found[0].to_dict()))
        assert record["predictions"][0].pop("score") == pytest.approx(0.7)
        assert record == {
            "path": str(paths[0]),
            "error": None,
            "predictions": [{"label": "cat"}],
        }
        assert found[1].to_dict()["predictions"] == []

    def test_agrees_with_the_transform_and_the_network(self, folder):
        rng = np.random.default_rng(0)
        paths = [folder / f"{index}.png" for index in range(5)]
        for path in paths:
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
        model, transform = make_bit(), EvalTransform(crop=32, resize=36)
        found = predict_images(model, paths, transform, top=1, batch_size=2)
        with torch.no_grad():
            images = torch.stack([transform(path) for path in paths])
            expected = model.eval()(images).softmax(1).max(1)
        assert [row.guesses[0].index for row in found] == expected.indices.tolist()
        scores = [row.guesses[0].score for row in found]
        assert scores == pytest.approx(expected.values.tolist(), rel=1e-4)

    def test_refusals(self, folder):
        with pytest.raises(UsageError, match=r"`top` must be at least 1, found 0"):
            self.predict([folder], top=0)
        with pytest.raises(
            UsageError, match=r"`activation` must be .*softmax, sigmoid, found 'relu'"
        ):
            self.predict([folder], activation="relu")
        with pytest.raises(LayoutError, match=r"\(\d, 2\), one per class name; found \(\d, 3\)"):
            self.predict([folder], names=NAMES[:2])

    def test_no_paths(self):
        assert self.predict([]) == []
