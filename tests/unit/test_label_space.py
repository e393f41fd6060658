"""Classes of data sets and outputs of models: what matches, what competes, and what is refused.

Oracle: timm's files and its `ImageNetInfo`, read here by themselves; lists written out by hand.
"""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.catalogue.task_classes import task_classes
from bitzoo.data.class_words import NameIndex, plain
from bitzoo.data.label_space import BY_INDEX, NO_OUTPUT, OutputSpace, match_labels, output_space
from bitzoo.data.problems import DatasetError
from bitzoo.zoo.info import info

TIMM = Path(importlib.util.find_spec("timm").origin).parent / "data" / "_info"
ILSVRC = (TIMM / "imagenet_synsets.txt").read_text().split()
GOOGLE = (TIMM / "imagenet21k_goog_synsets.txt").read_text().split()
SUBSETS = {
    name: (TIMM / f"imagenet_{name.lower()}_synsets.txt").read_text().split() for name in "AR"
}
TEDDY = "n04399382"
"""The only synset of ILSVRC that Google's 21,843 lack."""


@pytest.fixture(scope="module")
def ilsvrc():
    return output_space(info("BiT-M-R50x1-ILSVRC2012"))


@pytest.fixture(scope="module")
def google():
    return output_space(info("BiT-M-R50x1"))


def vtab(task):
    return output_space(info(f"BiT-M-R50x1-run0-{task}"))


def numbers(*span):
    return list(map(str, range(*span)))


def lemmas():
    lines = (TIMM / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    return {line.split("\t")[0]: line.split("\t")[1].strip('"') for line in lines}


class TestOutputs:
    def test_of_imagenet_heads_are_those_of_timm(self, ilsvrc, google):
        assert list(ilsvrc.synsets) == ILSVRC
        assert list(google.synsets) == GOOGLE
        assert (ilsvrc.label_set, google.label_set) == ("imagenet1k", "imagenet21k_goog")
        assert ilsvrc.describe(281) == "output 281 (n02123045, tabby, tabby cat)"
        assert google.title == "the 21,843 classes of imagenet21k_goog"

    def test_with_one_name_are_told_apart(self, ilsvrc):
        assert (ilsvrc.name(134), ilsvrc.name(517)) == ("crane (n02012849)", "crane (n03126707)")
        assert ilsvrc.name(0) == "tench, Tinca tinca"
        assert len({ilsvrc.name(k) for k in range(1000)}) == 1000

    def test_of_a_vtab_head_are_the_tasks(self):
        space = vtab("dtd")
        assert (space.task, space.count, space.names[0]) == ("dtd", 47, "banded")
        assert space.title == "the 47 classes of dtd in tensorflow_datasets' order"
        assert space.notes == ()

    def test_of_a_teacher_are_the_tasks(self):
        assert output_space(info("BiT-R152x2_T_food128")).names[:2] == (
            "apple_pie",
            "baby_back_ribs",
        )

    def test_known_by_a_file_name_only_say_so(self):
        claimed = Identity("BiT-M-R50x1-run0-dtd", "file name")
        space = output_space(ModelInfo("R50x1", 47, identity=claimed))
        assert space.task == "dtd"
        assert space.notes == (
            "That the outputs are those of dtd: BiT-M-R50x1-run0-dtd, by its file name only.",
        )

    def test_of_another_head_are_not_the_tasks(self):
        known = info("BiT-M-R50x1-run0-dtd")
        for changed in (known.with_head(47), known.with_head(10)):
            assert output_space(changed).task is None
            assert output_space(changed).names is None

    def test_of_a_model_without_names_say_why(self):
        space = output_space(ModelInfo("R50x1", 5))
        assert space.names is None
        assert space.title == "the 5 outputs of the model"
        assert space.notes[0].startswith("This model has no class names")

    def test_of_a_run_have_ids_if_all_its_names_are_ids(self):
        assert output_space(ModelInfo("R50x1", 2, own_names=("n01440764", TEDDY))).synsets
        assert output_space(ModelInfo("R50x1", 2, own_names=("n01440764", "cat"))).synsets is None


class TestById:
    def test_ilsvrc_on_its_head(self, ilsvrc):
        match = match_labels(ILSVRC, ilsvrc)
        assert match.outputs == tuple(range(1000))
        assert (match.competing, match.notes, match.without_output) == (None, (), ())
        assert match.how == (
            "The data set's classes and the 1,000 classes of imagenet1k were matched by WordNet id."
        )

    def test_in_any_order_and_with_words_behind(self, ilsvrc):
        match = match_labels(["n02123045 tabby, tabby cat", "n01440764_tench"], ilsvrc)
        assert match.outputs == (281, 0)

    def test_ilsvrc_on_the_large_head_is_restricted_and_lacks_one(self, google):
        match = match_labels(ILSVRC, google)
        expected = [GOOGLE.index(id_) if id_ != TEDDY else NO_OUTPUT for id_ in ILSVRC]
        assert list(match.outputs) == expected
        assert match.without_output == (TEDDY,)
        assert list(match.competing) == sorted(set(expected) - {NO_OUTPUT})
        assert len(match.competing) == len(match.names) == 999
        assert match.notes == (
            "Not counted: images of n04399382 (teddy, teddy bear); the 21,843 classes of "
            "imagenet21k_goog lack 1 of the data set's 1,000.",
            "Its classes are those of ILSVRC-2012, so only their 999 of 21,843 outputs "
            'compete; `outputs="all"` lets all compete.',
        )

    def test_only_the_whole_of_ilsvrc_may_lack_one(self, google):
        with pytest.raises(DatasetError) as error:
            match_labels(ILSVRC[100:], google)
        assert "found 1 of 900 that are not:\n    n04399382 (teddy, teddy bear): none" in str(
            error.value
        )
        match = match_labels(ILSVRC[100:], google, skip_unknown=True)
        assert match.without_output == (TEDDY,)
        assert match.competing is None

    @pytest.mark.parametrize("subset", ["A", "R"])
    def test_a_subset_is_recognised_and_restricted(self, subset, ilsvrc, google):
        ids = SUBSETS[subset]
        match = match_labels(ids, ilsvrc)
        assert match.subset == f"ImageNet-{subset}"
        indices = (TIMM / f"imagenet_{subset.lower()}_indices.txt").read_text().split()
        assert list(match.competing) == list(map(int, indices))
        assert match.targets == tuple(range(200))
        large = match_labels(ids, google)
        with_output = [id_ for id_ in ids if id_ != TEDDY]
        assert list(large.competing) == [GOOGLE.index(id_) for id_ in with_output]
        assert len(large.competing) == {"A": 199, "R": 200}[subset]

    def test_a_subset_is_recognised_by_the_classes_with_images(self, ilsvrc):
        match = match_labels(ILSVRC, ilsvrc, used=SUBSETS["R"])
        assert (match.subset, len(match.competing)) == ("ImageNet-R", 200)
        assert match.targets[0] == NO_OUTPUT if ILSVRC[0] not in SUBSETS["R"] else True
        assert match.targets[ILSVRC.index(SUBSETS["R"][7])] == 7

    def test_a_slice_of_a_subset_is_known_by_its_source(self, ilsvrc):
        match = match_labels(ILSVRC, ilsvrc, task="imagenet_a", used=SUBSETS["A"][:3])
        assert (match.subset, len(match.competing)) == ("ImageNet-A", 200)

    def test_other_classes_are_not_restricted(self, ilsvrc):
        match = match_labels(SUBSETS["A"][1:], ilsvrc)
        assert (match.competing, match.subset) == (None, None)
        assert match.notes == (
            "The data set has classes of 199 of the 1,000 outputs; all outputs compete, "
            '`outputs="data"` lets only those.',
        )

    def test_the_user_decides(self, ilsvrc):
        everything = match_labels(SUBSETS["A"], ilsvrc, restrict=False)
        assert everything.competing is None
        own = match_labels(ILSVRC[10:13], ilsvrc, restrict=True)
        assert own.competing == (10, 11, 12)
        assert own.names == tuple(map(ilsvrc.name, own.competing))
        assert own.notes == ("As asked, only the 3 outputs of its classes compete.",)
        with pytest.raises(DatasetError, match="at least two"):
            match_labels(ILSVRC[:1], ilsvrc, restrict=True)

    def test_a_run_on_ids_knows_the_subset(self):
        run = output_space(ModelInfo("R50x1", 1000, own_names=tuple(reversed(ILSVRC))))
        match = match_labels(SUBSETS["A"], run)
        assert match.subset == "ImageNet-A"
        assert [run.names[k] for k in match.competing] == SUBSETS["A"][::-1]

    def test_what_has_no_images_need_not_match(self, ilsvrc):
        match = match_labels(["n01440764", "n00004475"], ilsvrc, used=["n01440764"])
        assert match.outputs == (0, NO_OUTPUT)
        with pytest.raises(DatasetError, match=r"n00004475 \(organism, being\): none"):
            match_labels(["n01440764", "n00004475"], ilsvrc)


class TestByName:
    def test_words_and_whole_descriptions(self, ilsvrc):
        classes = ["Tabby Cat", "tench_Tinca tinca".replace("_", ", "), "great-white-shark", "hen"]
        assert match_labels(classes, ilsvrc).outputs == (281, 0, 2, 8)

    def test_every_published_description_is_itself(self, ilsvrc):
        words = lemmas()
        unique = [id_ for id_ in ILSVRC if words[id_] != "crane"]
        match = match_labels([words[id_] for id_ in unique], ilsvrc)
        assert [ilsvrc.synsets[k] for k in match.outputs] == unique

    @pytest.mark.parametrize(
        ("name", "both"),
        [
            ("crane", "output 134 (n02012849, crane) or output 517 (n03126707, crane)"),
            ("maillot", "output 638 (n03710637, maillot) or output 639 (n03710721, maillot, tank"),
            ("missile", "output 657 (n03773504, missile) or output 744 (n04008634, projectile, m"),
            ("crane, crane", "output 134 (n02012849, crane) or output 517 (n03126707, crane)"),
        ],
    )
    def test_an_ambiguous_name_is_refused(self, name, both, ilsvrc):
        with pytest.raises(DatasetError) as error:
            match_labels(["tench", name], ilsvrc)
        said = str(error.value)
        assert f"{name}: may be {both}" in said
        assert "found 1 of 2 that are not" in said
        assert "data set: 2 classes: tench," in said
        assert "the 1,000 classes of imagenet1k: n01440764 (tench), n01443537 (goldfish)" in said
        assert "WordNet ids say which" in said

    def test_unless_another_class_leaves_one(self, ilsvrc):
        match = match_labels(["maillot", "maillot, tank suit", "missile", "projectile"], ilsvrc)
        assert match.outputs == (638, 639, 657, 744)

    def test_or_the_whole_list_stands_in_the_published_order(self, ilsvrc):
        names = list(ilsvrc.names)
        names[517] = "crane2"  # as the Hub's copy calls it
        match = match_labels(names, ilsvrc)
        assert match.outputs == tuple(range(1000))
        assert match.notes == (
            "By place, as the other 998 are in the published order: crane is output 134 "
            "(n02012849, crane), crane2 is output 517 (n03126707, crane).",
        )
        with pytest.raises(DatasetError, match="crane2: none"):
            match_labels([*names[1:], names[0]], ilsvrc)

    def test_the_hubs_names_on_the_large_head(self, ilsvrc, google):
        names = list(ilsvrc.names)
        names[517] = "crane2"
        match = match_labels(names, google)
        assert match.outputs == match_labels(ILSVRC, google).outputs
        assert match.without_output == ("teddy, teddy bear",)
        assert match.how.endswith("by name in imagenet1k, then by WordNet id.")

    def test_a_word_of_ilsvrc_is_not_taken_for_ilsvrcs_on_the_large_head(self, google):
        with pytest.raises(DatasetError) as error:
            match_labels(["dog", "dingo"], google)
        assert "dog: may be output 2167 (n02084071, dog, domestic dog" in str(error.value)

    def test_stated_names_are_looked_up_where_they_are_from(self, google):
        match = match_labels(["robin", "teddy bear"], google, task="imagenet1k")
        assert match.outputs == (GOOGLE.index("n01558993"), NO_OUTPUT)
        assert (match.subset, len(match.competing)) == ("ILSVRC-2012", 999)

    def test_of_a_run_are_exact_first(self):
        space = output_space(ModelInfo("R50x1", 4, own_names=("cat", "Cat", "a, b", "1.5")))
        assert match_labels(["Cat", "1.5", "cat"], space).outputs == (1, 3, 0)
        match = match_labels(["A,B", "cat"], space)
        assert match.outputs == (2, 0)
        assert match.notes[0] == (
            "Spelled differently (case, separators or punctuation), 1: A,B is a, b."
        )
        with pytest.raises(DatasetError, match=r"CAT: may be output 0 \(cat\) or output 1 \(Cat\)"):
            match_labels(["CAT"], space)
        with pytest.raises(DatasetError, match="15: none"):
            match_labels(["15", "cat"], space)
        with pytest.raises(DatasetError, match=r"\nRename or remove them, or leave .*`skip_bad"):
            match_labels(["b", "cat"], space)

    def test_two_names_of_one_output_are_refused(self, ilsvrc):
        with pytest.raises(DatasetError, match=r"'tabby', 'tabby cat', which all mean output 281"):
            match_labels(["tabby", "tench", "tabby cat"], ilsvrc)

    def test_unmatched_names_are_bounded(self, ilsvrc):
        with pytest.raises(DatasetError) as error:
            match_labels([f"thing {k}" for k in range(300)], ilsvrc)
        assert "    and 290 more\n  data set: 300 classes: thing 0, " in str(error.value)

    def test_names_from_files_cannot_act_on_a_terminal(self, ilsvrc):
        with pytest.raises(DatasetError) as error:
            match_labels(["\x1b[2J"], ilsvrc)
        assert "\\x1b[2J: none" in str(error.value)

    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ("AnnualCrop", "annual_crop", True),
            ("/a/apartment_building/outdoor", "apartment building outdoor", True),
            ("pink-yellow dahlia?", "pink yellow dahlia", True),
            ("colt's foot", "Colts Foot", True),
            ("version 1.0", "version 10", False),
            ("1-2", "12", False),
            ("+", "-", False),
            ("Ⅷ", "viii", True),
        ],
    )
    def test_plain_form(self, one, other, same):
        assert (plain(one) == plain(other)) is same


class TestByNumber:
    def test_as_many_as_outputs(self, ilsvrc):
        as_text = sorted(numbers(1000))  # as ImageFolder sorts ImageNet-V2's folders
        assert as_text[:3] == ["0", "1", "10"]
        match = match_labels(as_text, ilsvrc)
        assert match.outputs == tuple(map(int, as_text))
        assert match.competing is None
        assert match.how.endswith(
            "by number: the data set's classes are 0 to 999, taken as the outputs'."
        )

    def test_with_leading_zeros(self, ilsvrc):
        assert match_labels([f"{k:04}" for k in range(1000)], ilsvrc).outputs[999] == 999

    def test_of_ilsvrc_on_the_large_head(self, google):
        match = match_labels(numbers(1000), google)
        assert match.outputs == match_labels(ILSVRC, google).outputs
        assert match.how.endswith("by number in imagenet1k, then by WordNet id.")
        assert match.notes[0].startswith("Not counted: images of 850 (n04399382, teddy, teddy bea")

    def test_stated_may_be_a_part(self, ilsvrc, google):
        match = match_labels(["7", "300"], google, task="imagenet1k")
        assert match.outputs == (GOOGLE.index(ILSVRC[7]), GOOGLE.index(ILSVRC[300]))
        assert (match.subset, len(match.competing)) == ("ILSVRC-2012", 999)
        assert match_labels(["7", "300"], google, task=BY_INDEX).outputs == (7, 300)
        assert match_labels(["7", "300"], ilsvrc, task="imagenet1k").competing is None

    def test_subsets_are_recognised_by_number_too(self, ilsvrc):
        used = [str(ILSVRC.index(id_)) for id_ in SUBSETS["A"]]
        assert match_labels(numbers(1000), ilsvrc, used=used).subset == "ImageNet-A"

    @pytest.mark.parametrize(
        ("classes", "why"),
        [
            (numbers(10), "Numbers are taken as the outputs' only if all are there, 0 to 999."),
            (numbers(1, 1001), "They seem to count from 1, and outputs count from 0."),
            ([*numbers(999), "05"], "Some of them are the same number."),
        ],
    )
    def test_others_are_refused(self, classes, why, ilsvrc):
        with pytest.raises(DatasetError) as error:
            match_labels(classes, ilsvrc)
        said = str(error.value)
        assert why in said
        assert f"are {len(classes):,} numbers from" in said
        assert "(n01440764 (tench), n01443537 (goldfish), n01484850 (great white shark) and" in said
        assert """`labels="index"` for the outputs', `labels="imagenet1k"` for those of""" in said

    def test_beyond_the_outputs_are_refused(self, ilsvrc):
        with pytest.raises(DatasetError, match=r"from 5 to 1000, .* The outputs are 0 to 999\."):
            match_labels(["5", "1000"], ilsvrc, task=BY_INDEX)

    def test_a_runs_names_have_no_numbers(self):
        space = output_space(ModelInfo("R50x1", 2, own_names=("cat", "dog")))
        with pytest.raises(DatasetError, match="whose order need not be that of the numbers"):
            match_labels(["0", "1"], space)
        assert match_labels(["1", "0"], space, task=BY_INDEX).outputs == (1, 0)

    def test_a_run_on_digits_has_numbers_for_names(self):
        space = output_space(ModelInfo("R50x1", 3, own_names=("3", "5", "07")))
        assert match_labels(["5", "3"], space).outputs == (1, 0)
        with pytest.raises(DatasetError, match="    8: none"):
            match_labels(["5", "8"], space)

    def test_are_all_there_is_without_names(self):
        space = output_space(ModelInfo("R50x1", 3))
        match = match_labels(["2", "0", "1"], space)
        assert match.outputs == (2, 0, 1)
        assert match.names == ("0", "1", "2")
        with pytest.raises(DatasetError) as error:
            match_labels(["cat", "dog"], space)
        assert "the 3 outputs of the model: output 0, output 1, output 2" in str(error.value)
        assert "This model has no class names" in str(error.value)


class TestTraps:
    """What is known to differ between copies of VTAB's data sets."""

    def test_caltech_without_background(self):
        space = vtab("caltech101")
        others = [name for name in space.names if name != "background_google"]
        upper = ["faces", "faces_easy", "leopards", "motorbikes"]
        torchvision = [n.capitalize() for n in upper] + [n for n in others if n not in upper]
        match = match_labels(torchvision, space)
        assert [space.names[k] for k in match.outputs] == [n.lower() for n in torchvision]
        assert 4 not in match.outputs
        assert match.competing is None
        assert "(all but background_google); all outputs compete" in match.notes[1]

    def test_caltech_with_background(self):
        space = vtab("caltech101")
        folders = sorted(
            "BACKGROUND_Google" if name == "background_google" else name for name in space.names
        )
        match = match_labels(folders, space)
        assert match.outputs[0] == 4
        assert sorted(match.outputs) == list(range(102))

    @pytest.mark.parametrize("count", [101, 102])
    def test_caltech_by_number_is_refused(self, count):
        with pytest.raises(DatasetError, match="torchvision leaves the background out; and folder"):
            match_labels(numbers(count), vtab("caltech101"))

    def test_flowers(self):
        space = vtab("oxford_flowers102")
        by_text = sorted(numbers(1, 103))
        match = match_labels(by_text, space)
        assert match.outputs == tuple(int(name) - 1 for name in by_text)
        assert "the numbers are Oxford's own" in match.how
        match = match_labels(sorted(numbers(102)), space)
        assert match.outputs[:3] == (0, 1, 10)
        assert "order of their numbers as text" in match.notes[0]
        names = ["pink yellow dahlia", "Globe Flower", "colts foot"]
        assert match_labels(names, space).outputs == (59, 15, 11)
        with pytest.raises(DatasetError, match="They seem to count from 1"):
            match_labels(numbers(1, 50), space)

    def test_clevr_counts_objects(self):
        match = match_labels(numbers(3, 11), vtab("clevr-count"))
        assert match.outputs == tuple(range(8))
        assert "the numbers are the numbers of objects" in match.how
        assert match_labels(numbers(8), vtab("clevr-count")).outputs == tuple(range(8))
        with pytest.raises(DatasetError, match="only if all are there, 0 to 7"):
            match_labels(numbers(3, 7), vtab("clevr-count"))

    def test_svhns_tenth_digit_is_0(self):
        match = match_labels(sorted(numbers(1, 11)), vtab("svhn"))
        assert match.classes[:3] == ("1", "10", "2")
        assert match.outputs[:3] == (1, 0, 2)
        assert match_labels(numbers(10), vtab("svhn")).outputs == tuple(range(10))

    def test_azimuth_in_steps(self):
        assert match_labels(numbers(0, 36, 2), vtab("smallnorb-azimuth")).outputs == tuple(
            range(18)
        )

    def test_sun397(self):
        space = vtab("sun397")
        torchvision = [name[3:] for name in space.names]  # as its class list drops "/a/"
        assert match_labels(torchvision, space).outputs == tuple(range(397))
        with pytest.raises(DatasetError, match="SUN397 is numbered in several ways"):
            match_labels(numbers(397), space)

    def test_a_task_without_names_has_numbers_only(self):
        assert match_labels(numbers(6), vtab("dmlab")).outputs == tuple(range(6))
        with pytest.raises(DatasetError, match=r"close: none\n    far: none"):
            match_labels(["close", "far"], vtab("dmlab"))

    def test_of_one_source_match_by_order(self):
        space = vtab("smallnorb-elevation")
        names = [f"{30 + 5 * k} degrees" for k in range(9)]
        match = match_labels(names, space, task="smallnorb-elevation")
        assert match.outputs == tuple(range(9))
        assert match.how.endswith(
            "by their order: both are in tensorflow_datasets' order of smallnorb-elevation."
        )
        with pytest.raises(DatasetError, match="30 degrees: none"):
            match_labels(names, space, task="smallnorb-azimuth")
        with pytest.raises(DatasetError, match="30 degrees: none"):
            match_labels(names[:8], space, task="smallnorb-elevation")

    def test_names_overrule_an_order(self):
        space = vtab("eurosat")
        other = (*space.names[1:], space.names[0])
        match = match_labels(other, space, task="eurosat")
        assert match.outputs == (*range(1, 10), 0)
        assert match.how.endswith("by name.")


class TestTaskClasses:
    """The names are tensorflow_datasets', where that states them."""

    @pytest.mark.parametrize(
        ("task", "module", "name"),
        [
            ("caltech101", "image_classification/caltech101_labels.txt", None),
            ("dtd", "image_classification/dtd_key_attributes.txt", None),
            ("food101", "image_classification/food-101_classes.txt", None),
            ("sun397", "image_classification/sun397_labels.txt", None),
            ("eurosat", "image_classification/eurosat.py", "_LABELS"),
            ("resisc45", "datasets/resisc45/resisc45_dataset_builder.py", "_LABELS"),
            (
                "oxford_flowers102",
                "datasets/oxford_flowers102/oxford_flowers102_dataset_builder.py",
                "_NAMES",
            ),
            (
                "oxford_iiit_pet",
                "datasets/oxford_iiit_pet/oxford_iiit_pet_dataset_builder.py",
                "_LABEL_CLASSES",
            ),
        ],
    )
    def test_are_the_librarys(self, task, module, name):
        library = importlib.util.find_spec("tensorflow_datasets")
        if library is None:
            pytest.skip("tensorflow_datasets is not installed")
        text = (Path(library.origin).parent / module).read_text()
        if name:
            listed = re.search(rf"^{name} = (\[.*?\])", text, re.DOTALL | re.MULTILINE)[1]
            expected = eval(listed)
        else:
            expected = text.split("\n")
            expected = [line for line in expected if line]
        assert list(task_classes(task).names) == expected

    def test_have_the_counts_of_the_catalogue(self):
        path = Path(importlib.util.find_spec("bitzoo").origin).parent / "catalogue"
        listed = json.loads((path / "task_classes.json").read_text())
        for task, names in listed.items():
            assert len({plain(name) for name in names}) == len(names)
            spec = "BiT-R152x2_T_food128" if task == "food101" else f"BiT-M-R50x1-run0-{task}"
            assert info(spec).num_classes == len(names)
        assert listed["cifar100"] == sorted(listed["cifar100"])
        assert len(listed) == 9

    def test_numberings_have_one_number_per_output(self):
        for task in ("oxford_flowers102", "oxford_iiit_pet", "svhn", "clevr-count"):
            for numbering in task_classes(task).numberings:
                assert len(set(numbering.numbers)) == vtab(task).count

    def test_an_unknown_task_has_nothing(self):
        assert task_classes("jft-300m").names is None


class TestCounts:
    """Right counts for synthetic logits, against a count made with timm's lists and torch."""

    @staticmethod
    def counted(match, logits, labels):
        """Top-1 and top-5 as an evaluation takes them from a match."""
        targets = np.array([match.targets[label] for label in labels])
        kept = targets != NO_OUTPUT
        columns, targets = match.restrict(logits)[kept], targets[kept]
        order = np.argsort(-columns, axis=1, kind="stable")[:, :5]
        hits = order == targets[:, None]
        return int(hits[:, 0].sum()), int(hits.any(axis=1).sum()), int(kept.sum())

    @pytest.mark.parametrize("classes", ["ILSVRC", "A", "R"])
    @pytest.mark.parametrize("head", ["ilsvrc", "google"])
    def test_equal_those_made_outside(self, head, classes, request):
        from timm.data import ImageNetInfo

        space = request.getfixturevalue(head)
        names = {"ilsvrc": "imagenet-1k", "google": "imagenet-21k-goog"}[head]
        synsets = ImageNetInfo(names).label_names()
        folders = ILSVRC if classes == "ILSVRC" else SUBSETS[classes]
        draw = np.random.default_rng(1)
        labels = draw.integers(0, len(folders), 400)
        logits = torch.from_numpy(draw.normal(size=(400, len(synsets))).astype(np.float32))
        allowed = torch.tensor([synsets.index(id_) for id_ in folders if id_ in synsets])
        for row, label in enumerate(labels):  # so that a good part is right
            if row % 2 and folders[label] in synsets:
                logits[row, synsets.index(folders[label])] += 3.0
        masked = torch.full_like(logits, -torch.inf)
        masked[:, allowed] = logits[:, allowed]
        top = [[synsets[k] for k in row] for row in masked.topk(5).indices.tolist()]
        truth = [folders[label] for label in labels]
        judged = [(row, id_) for row, id_ in zip(top, truth, strict=True) if id_ in synsets]
        expected = (
            sum(row[0] == id_ for row, id_ in judged),
            sum(id_ in row for row, id_ in judged),
            len(judged),
        )
        assert 20 < expected[0] < expected[1] < expected[2]
        order = draw.permutation(len(folders))  # of the data set's classes: any
        match = match_labels([folders[k] for k in order], space)
        at = np.argsort(order)
        assert self.counted(match, logits.numpy(), at[labels]) == expected


def test_an_index_says_nothing_about_an_unknown_name():
    index = NameIndex(["a, b", "b, c"], words=True)
    assert index.candidates("z") == frozenset()
    assert index.candidates("b") == {0, 1}
    assert index.candidates("b, c") == {1}
    assert index.resolve(["b", "c"]) == [{0}, {1}]


def test_a_space_can_be_made_by_hand():
    space = OutputSpace(2, "two", ("x", "y"))
    assert match_labels(["y"], space).names == ("x", "y")
