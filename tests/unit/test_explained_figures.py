"""Figures in the explanations and the pages for newcomers are the code's and the benchmarks'."""

import re
from pathlib import Path
from typing import get_args

import pytest

from bitzoo.catalogue.registry import find_spec, get_spec, list_models
from bitzoo.models.architecture import ARCHITECTURES
from bitzoo.models.layers import REFERENCE_EPS
from bitzoo.training.hyperrule import Edition, hyperrule

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each Markdown table, without the line under the head."""
    found = re.findall(r"(?:^ *\|.*\|\n)+", text, re.MULTILINE)
    return [
        [
            [cell.strip(" *") for cell in line.strip().strip("|").split("|")]
            for line in table.splitlines()
            if not re.fullmatch(r"[ |:-]+", line)
        ]
        for table in found
    ]


def table_with(text: str, head: str) -> list[list[str]]:
    """The only table that has this cell in its first row."""
    (table,) = [rows for rows in tables(text) if head in rows[0]]
    return table[1:]


RESULTS = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
MEASURED = {row[0]: row[1:] for row in table_with(RESULTS, "kernel std")}
EDITIONS = get_args(Edition)
EXAMPLES = {"below 20,000": 19_999, "below 500,000": 499_999, "more": 500_000}


class TestEps:
    def test_the_table_is_that_of_the_benchmark(self):
        rows = table_with(text_of("explanation/eps.md"), "kernels' standard deviation")
        assert len(rows) == 5
        for name, *figures in rows:
            key = re.sub(r" \(.*?\)", "", name)
            assert figures == MEASURED[key][:3], name

    def test_what_the_text_says_of_it(self):
        text = " ".join(text_of("explanation/eps.md").split())
        exact = [float(row[column]) for name, row in MEASURED.items()
                 for column in (3, 4) if name.endswith("float64")]  # fmt: skip
        assert len(exact) == 8
        assert {f"{figure:.0e}" for figure in exact} == {"4e-07"}
        assert "both libraries were then 4e-7 from the reference" in text
        smallest, rounding = (float(MEASURED[key][1]) for key in ("0.001, float64", "He, float32"))
        assert f"{smallest:.0e}" == "9e-03"  # one percent
        assert 1500 < smallest / rounding < 2500
        assert "about two thousand times the rounding" in text

    def test_the_numbers_of_the_libraries(self):
        timm = pytest.importorskip("timm")
        theirs = timm.create_model("resnetv2_50x1_bit", num_classes=0)
        eps = {m.eps for m in theirs.modules() if isinstance(m, timm.layers.StdConv2d)}
        assert (eps, REFERENCE_EPS) == ({1e-8}, 1e-10)


class TestHeldOut:
    def test_the_table_is_that_of_the_benchmark(self):
        measured = table_with(RESULTS, "by person")
        assert len(measured) == 4
        assert table_with(text_of("explanation/held-out.md"), "by person") == measured


class TestHyperRules:
    text = text_of("explanation/hyperrules.md")

    def test_by_number(self):
        rows = table_with(self.text, "training images")
        assert [row[0] for row in rows] == list(EXAMPLES)
        for name, steps, warmup, mixup, *decays in rows:
            for edition, decay in zip(EDITIONS, decays, strict=True):
                recipe = hyperrule(EXAMPLES[name], (480, 640), edition)
                schedule = recipe.schedule
                assert int(steps.replace(",", "")) == schedule.steps
                assert int(warmup) == schedule.warmup
                assert (0 if mixup == "none" else float(mixup)) == recipe.mixup_alpha
                said = decays[0] if decay == "the same" else decay
                numbers = [int(number.replace(",", "")) for number in said.split(", ")]
                assert tuple(numbers) == schedule.boundaries

    def test_by_size(self):
        cases = {
            "below 96 x 96 in area": ((95, 96), "R50x1"),
            "larger": ((96, 96), "R101x3"),
            "larger, with R152x4": ((96, 96), "R152x4"),
        }
        rows = table_with(self.text, "images, height x width")
        assert [row[0] for row in rows] == list(cases)
        for name, *sizes in rows:
            for edition, size in zip(EDITIONS, sizes, strict=True):
                recipe = hyperrule(100, cases[name][0], edition, cases[name][1])
                said = sizes[0] if size == "the same" else size
                assert said == f"resize {recipe.resize}, crop {recipe.crop}"

    @pytest.mark.parametrize("edition", ["paper", "released"])
    @pytest.mark.parametrize("count", EXAMPLES.values())
    def test_what_is_always_the_same(self, edition, count):
        recipe = hyperrule(count, (480, 640), edition)
        words = " ".join(self.text.split())
        says = f"SGD with momentum {recipe.momentum}, learning rate {recipe.schedule.base_lr}, "
        assert f"{says}{recipe.batch_size} images a step, no weight decay" in words
        assert recipe.weight_decay == 0
        assert f"Decay divides the rate by {recipe.schedule.decay:g}." in words


class TestComingFrom:
    def test_names_of_others_are_names_here(self):
        """Every timm name and every handle of TF-Hub that the pages have a line for."""
        timm_page, hub_page = (text_of(f"coming-from/{page}.md") for page in ("timm", "tf-hub"))
        names = set(re.findall(r'create_model\("(resnetv2_\w+_bit\.\w+)"', timm_page))
        assert names == {"resnetv2_50x1_bit.goog_in21k_ft_in1k"}
        assert {get_spec(name).name for name in names} == {"BiT-M-R50x1-ILSVRC2012"}
        rows = table_with(hub_page, "TF-Hub, now Kaggle")
        models = [re.search(r'create_model\("([^"]+)"', line[1]) for line in rows]
        handles = [
            "google/bit/m-r50x1/1",
            "google/bit/m-r50x1/imagenet21k_classification/1",
            "google/bit/m-r50x1/ilsvrc2012_classification/1",
            "google/bit/s-r50x1/ilsvrc2012_classification/1",
            "sayakpaul/distill_bit_resnet50x1_224_classification/1",
        ]
        found = [model[1] for model in models if model]
        assert [get_spec(f"https://tfhub.dev/{handle}").name for handle in handles] == found

    def test_how_many_releases_others_lack(self):
        timm = pytest.importorskip("timm")
        released = len(list_models(released=True))
        shared = [name for name in timm.list_models("*_bit.*", pretrained=True) if find_spec(name)]
        assert f"{released - len(shared)} more released checkpoints" in text_of(
            "coming-from/timm.md"
        )
        assert f"it is one of {released}." in " ".join(
            text_of("coming-from/transformers.md").split()
        )

    def test_speeds_are_those_of_the_benchmark(self):
        one_image, loading = (
            RESULTS.split(f"### {title}")[1].split("###")[0]
            for title in ("R50x1, batch 1, 224 px, cpu", "R152x4, 4.43 GB")
        )
        eager, openvino = (
            round(float(_row(one_image, f"bitzoo {name}")[1]))
            for name in ("eager, float32", "openvino, bfloat16")
        )
        page = " ".join(text_of("coming-from/ultralytics.md").split())
        says = (
            f"R50x1 took {eager} ms for an image of 224 px, with OpenVINO in bfloat16 {openvino} ms"
        )
        assert says in page
        ours, theirs = (float(_row(loading, name)[1]) for name in ("bitzoo", "timm"))
        says = f"R152x4 took {ours:.2f} s instead of {theirs:.1f} s"
        assert says in " ".join(text_of("coming-from/timm.md").split())

    def test_sizes_of_the_networks(self):
        smallest, largest = (
            sum(_numbers(shape) for shape in ARCHITECTURES[name].shapes(0).values())
            for name in ("R50x1", "R152x4")
        )
        says = f"BiT, {smallest / 1e6:.1f} M (R50x1) to {largest / 1e6:.0f} M (R152x4)"
        assert says in text_of("coming-from/ultralytics.md")


def _row(text, name):
    (row,) = [row for rows in tables(text) for row in rows if row[0] == name]
    return row


def _numbers(shape):
    count = 1
    for side in shape:
        count *= side
    return count
