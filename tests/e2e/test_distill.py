"""`bitzoo distill` from end to end: what the run folder, the record, the card and JSON say."""

import hashlib
import html
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_npz
from click.testing import CliRunner
from images import write_digits, write_photos

import bitzoo
from bitzoo.cli.main import app
from bitzoo.errors import BitzooError, UsageError
from bitzoo.runs.config import Callbacks
from bitzoo.runs.distill import DistillResult
from bitzoo.zoo.model_folder import write_model_folder

STUDENT = "R(1,1,1,1)x0.5"
SHORT: dict[str, Any] = {
    "steps": 3,
    "batch_size": 4,
    "resolution": 32,
    "workers": 1,
    "progress": False,
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `data`, two teachers of its classes, and a finished `run` of one of them."""
    folder = tmp_path_factory.mktemp("distill")
    write_digits(folder / "data", per_class=5, val_per_class=3, classes=range(3), size=40)
    for seed, name in enumerate(("teacher", "other")):
        make_teacher(folder / name, ("2", "0", "1"), seed)
    bitzoo.distill(
        folder / "teacher", STUDENT, folder / "data", folder / "run", temperature=3.0,
        checkpoint_every=1, keep_checkpoints=9, **SHORT,
    )  # fmt: skip
    return folder


def make_teacher(folder, names, seed=0):
    folder.mkdir()
    path = write_npz(folder / "from.npz", make_checkpoint(num_classes=len(names), seed=seed))
    network = bitzoo.create_model(path, pretrained=True)
    made = replace(bitzoo.info(network), own_names=names, activation="softmax")
    write_model_folder(folder, network, made)
    return folder


def weights(folder):
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


def predictions(model, paths):
    """The most likely class of each image, one at a time, by the plain network."""
    network, names = bitzoo.create_model(model, pretrained=True), bitzoo.info(model).class_names
    return [names[int(network(each[None]).argmax())] for each in paths]


class TestTheRun:
    def test_is_a_model_with_the_teacher_s_classes(self, place):
        known = bitzoo.info(place / "run")
        assert known.class_names == ("2", "0", "1")
        assert known.sources["own_names"] == "the teacher"
        assert str(known.identity) == "distilled by bitzoo"
        assert known.base is None
        assert (known.preprocessing.crop, known.preprocessing.resize) == (32, 40)
        network = bitzoo.create_model(place / "run", pretrained=True)
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)

    def test_record_names_the_teacher_and_the_recipe(self, place):
        (teacher,) = bitzoo.info(place / "run").run.teachers
        assert teacher.name == str(place / "teacher")
        assert teacher.sha256 == weights(place / "teacher")
        assert (teacher.architecture, teacher.dtype) == (STUDENT, "float32")
        recipe = bitzoo.info(place / "run").run.recipe
        assert recipe["loss_options"] == {"temperature": 3.0}
        assert recipe["loss"] == "distillation"

    def test_figures_are_those_of_the_images_one_by_one(self, place):
        """Top-1 of student and teacher, and how often they agree, by another way through."""
        measured = json.loads((place / "run" / "evaluation.json").read_text())
        files = sorted((place / "data" / "val").rglob("*.png"))
        see = bitzoo.create_transform(place / "run")  # of both
        images = [see(path) for path in files]
        student, teacher = (predictions(place / name, images) for name in ("run", "teacher"))
        truth = [path.parent.name for path in files]
        assert measured["correct"] == sum(np.equal(student, truth))
        teaching = measured["teaching"]
        assert teaching["correct"] == sum(np.equal(teacher, truth))
        assert teaching["agreed"] == sum(np.equal(student, teacher))
        assert teaching["count"] == 9
        assert teaching["top1"] == teaching["correct"] / 9
        assert teaching["trained_on"] is None  # a converted file has no record of its images

    @pytest.mark.parametrize("page", ["README.md", "report.html"])
    def test_card_and_report_name_the_teacher(self, place, page):
        text = (place / "run" / page).read_text()
        assert "distilled by bitzoo from" in text
        assert weights(place / "teacher") in text
        assert "On the same images, the teacher: top-1" in text
        assert "divergence of the student from the teacher, at temperature 3 on both sides" in text
        assert "is not recorded" in text

    @pytest.mark.slow
    def test_the_command_in_the_report_makes_the_run_again(self, place, tmp_path):
        text = html.unescape((place / "run" / "report.html").read_text())
        line = next(line for line in text.splitlines() if "bitzoo distill" in line)
        words = shlex.split(line[line.index("bitzoo distill") :].partition("<")[0])
        words[words.index("--out") + 1] = str(tmp_path / "again")
        result = CliRunner().invoke(app, [*words[1:], "--json"])
        assert result.exit_code == 0, result.output
        assert weights(tmp_path / "again") == weights(place / "run")
        document = json.loads(result.stdout)
        assert document["teaching"]["agreed"] == json.loads(
            (place / "run" / "evaluation.json").read_text()
        )["teaching"]["agreed"]  # fmt: skip


class TestResume:
    def test_from_a_checkpoint_bit_for_bit(self, place, tmp_path):
        """Without any option: the teacher is found again by its place."""
        bitzoo.distill(
            place / "teacher", STUDENT, place / "data", tmp_path / "run", temperature=3.0,
            checkpoint_every=1, keep_checkpoints=9, **SHORT,
        )  # fmt: skip
        files = sorted((tmp_path / "run" / "checkpoints").iterdir())
        for file in files[1:]:
            file.unlink()
        for name in ("model.safetensors", "config.json"):
            (tmp_path / "run" / name).unlink()
        steps = []
        result = bitzoo.resume(
            tmp_path / "run", progress=False,
            callbacks=Callbacks(on_step=lambda metrics: steps.append(metrics["step"])),
        )  # fmt: skip
        assert steps == [2, 3]
        assert isinstance(result, DistillResult)
        assert result.teaching.count == 9
        assert weights(tmp_path / "run") == weights(place / "run")

    @pytest.mark.slow
    def test_another_teacher_is_refused(self, place, tmp_path):
        """Its bytes count, not its name."""
        make_teacher(tmp_path / "t", ("2", "0", "1"))
        bitzoo.distill(
            tmp_path / "t", STUDENT, place / "data", tmp_path / "run", **SHORT | {"steps": 1}
        )
        network = bitzoo.create_model(tmp_path / "t", pretrained=True)
        head: Any = network.get_classifier()
        with torch.no_grad():
            head.bias[0] += 1.0
        write_model_folder(tmp_path / "t", network, bitzoo.info(network))
        with pytest.raises(UsageError, match="teachers"):
            bitzoo.resume(tmp_path / "run", extend=1, progress=False)


class TestKinds:
    def test_several_teachers(self, place, tmp_path):
        result = bitzoo.distill(
            [place / "teacher", place / "other"], STUDENT, place / "data", tmp_path / "run",
            **SHORT,
        )  # fmt: skip
        records = bitzoo.info(tmp_path / "run").run.teachers
        assert [each.sha256 for each in records] == [
            weights(place / name) for name in ("teacher", "other")
        ]
        assert any("logits of the 2 teachers are averaged" in n for n in result.recipe.notes)
        assert "the mean of" in (tmp_path / "run" / "README.md").read_text()

    @pytest.mark.slow
    def test_a_student_that_starts_from_a_run(self, place, tmp_path):
        said: list[str] = []
        result = bitzoo.distill(
            place / "teacher", place / "run", place / "data", tmp_path / "more",
            callbacks=Callbacks(say=said.append), **SHORT,
        )  # fmt: skip
        assert result.recipe.head == "kept"
        assert any("helps only short runs" in note for note in result.recipe.notes)
        record = json.loads((tmp_path / "more" / "run.json").read_text())
        assert record["pretrained"] is True

    def test_images_without_labels(self, place, tmp_path):
        """A flat folder; the student has the teacher's classes, and nothing is measured."""
        write_photos(tmp_path / "photos", 5)
        result = bitzoo.distill(
            place / "teacher", STUDENT, tmp_path / "photos", tmp_path / "run", unlabelled=True,
            **SHORT,
        )  # fmt: skip
        assert result.evaluation is None
        assert result.teaching.verdict == ""
        known = bitzoo.info(tmp_path / "run")
        assert known.class_names == ("2", "0", "1")
        assert known.run.split["train"] == 5
        card = (tmp_path / "run" / "README.md").read_text()
        assert "Not measured: no images were held out." in card
        assert "| classes | 3 |" in card


class TestRefusals:
    def test_classes_that_the_teacher_does_not_have(self, place, tmp_path):
        for name in ("2", "cat"):
            write_photos(tmp_path / "data" / name, 4, first_seed=len(name))
        with pytest.raises(BitzooError, match=r"(?s)must be one of the model's.*`unlabelled=True`"):
            bitzoo.distill(place / "teacher", STUDENT, tmp_path / "data", tmp_path / "run", **SHORT)

    def test_overwriting_the_teacher(self, place):
        before = weights(place / "run")
        with pytest.raises(UsageError, match="would delete a teacher"):
            bitzoo.distill(
                place / "run", STUDENT, place / "data", place / "run", overwrite=True,
                **SHORT,
            )  # fmt: skip
        assert weights(place / "run") == before

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"student": "R50y1"}, "must be an architecture, such as R50x1, or a model"),
            ({"preset": "cifar"}, "`preset` must be one of"),
            ({"steps": None}, "must be said how long to distill"),
            ({"unlabelled": True, "val_fraction": 0.5}, "`val_fraction` chooses images to hold"),
            ({"unlabelled": True, "group_by": r"\d"}, "`group_by` chooses images to hold"),
        ],
    )
    def test_options(self, place, tmp_path, given, said):
        options = SHORT | {"student": STUDENT} | given
        student = options.pop("student")
        with pytest.raises(UsageError, match=said):
            bitzoo.distill(place / "teacher", student, place / "data", tmp_path / "run", **options)

    def test_no_teacher(self, place, tmp_path):
        with pytest.raises(UsageError, match="needs a teacher, found none"):
            bitzoo.distill([], STUDENT, place / "data", tmp_path / "run", **SHORT)
        result = CliRunner().invoke(app, ["distill", STUDENT, "--data", "x", "--out", "y"])
        assert result.exit_code == 2
        assert "Missing option '--teacher'" in result.output


def test_python_and_the_command_line_have_the_same_options():
    from inspect import signature

    python = set(signature(bitzoo.distill).parameters) - {"callbacks", "progress"}
    flags = {parameter.name for parameter in app.commands["distill"].params}
    python -= {"keep_checkpoints"}  # of Python alone, as for the other runs
    assert flags - {"student_argument", "json", "debug", "yes"} == python  # callbacks ask
