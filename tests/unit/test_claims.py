"""Published figures against the tables they were printed in, written a second time as text."""

from collections import Counter
from dataclasses import asdict

import pytest
from click.testing import CliRunner

import bitzoo
from bitzoo.catalogue.claims import claims_of, get_claim
from bitzoo.cli.main import app
from bitzoo.errors import UnknownModelError, UsageError

README_CIFAR = {
    "BiT-M-R101x3": """
        CIFAR10  1    | 52.5 55.8 60.2 | 48.7 53.9 65.0 | 56.4 56.7 73.1
        CIFAR10  5    | 85.3 87.2 89.1 | 80.2 85.8 88.6 | 84.8 85.8 89.6
        CIFAR10  full |      98.5      |      98.4      | 98.5 98.6 98.6
        CIFAR100 1    | 34.8 35.7 37.9 | 32.1 35.0 37.1 | 31.6 33.8 36.9
        CIFAR100 5    | 68.8 70.4 71.4 | 68.6 70.8 71.6 | 70.6 71.6 71.7
        CIFAR100 full |      90.8      |      91.2      | 91.1 91.2 91.4""",
    "BiT-M-R152x2": """
        CIFAR10  1    |                | 44.0 56.7 65.0 | 50.9 55.5 59.5
        CIFAR10  5    |                | 85.3 87.0 88.2 | 85.3 85.8 88.6
        CIFAR10  full |                |      98.5      | 98.5 98.5 98.6
        CIFAR100 1    |                | 36.4 37.2 38.9 | 34.3 36.8 39.0
        CIFAR100 5    |                | 69.3 70.5 72.0 | 70.3 72.0 72.3
        CIFAR100 full |                |      91.2      | 91.2 91.3 91.4""",
    "BiT-M-R50x1": """
        CIFAR10  1    | 49.9 54.4 60.2 | 48.4 54.1 66.1 | 45.8 57.9 65.7
        CIFAR10  5    | 80.8 83.3 85.5 | 76.7 82.4 85.4 | 80.3 82.3 84.9
        CIFAR10  full |      97.2      |      97.3      |      97.4
        CIFAR100 1    | 35.3 37.1 38.2 | 32.0 35.2 37.8 | 34.6 35.2 38.6
        CIFAR100 5    | 63.8 65.0 66.5 | 63.4 64.8 66.5 | 64.7 65.5 66.0
        CIFAR100 full |      86.5      |      86.4      |      86.6""",
}
"""google-research/big_transfer's README, 140de6e: lowest, median, highest by TF2, JAX, PyTorch."""

README_IMAGENET = """
    1    | 18.36 | 24.5  | 25.55
    5    | 50.64 | 64.5  | 64.18
    full | 80.68 | 85.15 | WIP"""
"""Examples per class, then R50x1, R152x2, R101x3."""

README_VTAB = """
    BiT-M-R152x4 73.51 80.77 61.08 85.67
    BiT-M-R101x3 72.65 80.29 59.40 85.75"""
"""Full, natural, structured, specialized."""

PAPER = """
    BiT-S ILSVRC-2012 81.30 CIFAR-10 97.51 CIFAR-100 86.21 Pets 93.97 Flowers 89.89 VTAB 66.87
    BiT-M ILSVRC-2012 85.39 CIFAR-10 98.91 CIFAR-100 92.17 Pets 94.46 Flowers 99.30 VTAB 70.64
    BiT-L ILSVRC-2012 87.54 CIFAR-10 99.37 CIFAR-100 93.51 Pets 96.62 Flowers 99.63 VTAB 76.29"""

TIMM = """
    50x1_bit.goog_distilled_in1k           224 82.820 87.798 72.18 25.133 45.357 31.640
    152x2_bit.goog_teacher_in21k_ft_in1k   224 82.918 87.491 71.43 32.04  49.17  37.356
    152x2_bit.goog_teacher_in21k_ft_in1k_384 384 83.858 88.144 72.72 50.08 52.07 38.989
    50x1_bit.goog_in21k_ft_in1k            448 80.386 86.464 67.89 27.12  39.397 25.355
    101x1_bit.goog_in21k_ft_in1k           448 82.332 87.678 70.70 38.28  44.100 29.914
    50x3_bit.goog_in21k_ft_in1k            448 83.982 88.400 71.82 46.387 47.760 33.744
    101x3_bit.goog_in21k_ft_in1k           448 84.430 88.445 72.43 52.400 50.523 36.444
    152x2_bit.goog_in21k_ft_in1k           448 84.468 88.710 73.04 52.800 51.820 38.006
    152x4_bit.goog_in21k_ft_in1k           480 84.936 88.567 73.14 59.560 54.217 41.304"""
"""timm's names without resnetv2_: pixels, top-1 on ILSVRC, ReaL, V2, A, R, Sketch."""

TIMM_TOP5 = """
    50x1_bit.goog_distilled_in1k             96.526 97.903 91.080 59.387 62.270 51.312
    152x2_bit.goog_teacher_in21k_ft_in1k     96.568 97.801 90.280 63.547 65.447 59.461
    152x2_bit.goog_teacher_in21k_ft_in1k_384 97.130 98.046 90.940 77.707 68.833 62.487
    50x1_bit.goog_in21k_ft_in1k              95.694 97.613 89.100 62.613 57.883 45.361
    101x1_bit.goog_in21k_ft_in1k             96.524 97.946 90.960 70.253 62.050 51.105
    50x3_bit.goog_in21k_ft_in1k              97.130 98.185 91.260 76.680 65.667 55.939
    101x3_bit.goog_in21k_ft_in1k             97.380 98.155 92.070 79.840 67.967 59.034
    152x2_bit.goog_in21k_ft_in1k             97.432 98.305 91.990 81.133 69.360 61.172
    152x4_bit.goog_in21k_ft_in1k             97.456 98.192 91.780 83.160 70.273 64.360"""

TIMM_CLEAN = """
    50x1_bit.goog_distilled_in1k             96.100 99.270 95.390 99.420
    152x2_bit.goog_teacher_in21k_ft_in1k     96.090 99.310 95.740 99.430
    152x2_bit.goog_teacher_in21k_ft_in1k_384 96.830 99.450 96.170 99.500
    50x1_bit.goog_in21k_ft_in1k              95.030 99.060 94.760 99.180
    101x1_bit.goog_in21k_ft_in1k             96.100 99.280 95.330 99.380
    50x3_bit.goog_in21k_ft_in1k              96.730 99.530 96.290 99.630
    101x3_bit.goog_in21k_ft_in1k             97.010 99.490 96.300 99.590
    152x2_bit.goog_in21k_ft_in1k             97.020 99.590 96.530 99.590
    152x4_bit.goog_in21k_ft_in1k             97.490 99.620 96.890 99.680"""
"""On ILSVRC's images of A's classes top-1 and top-5, then of R's."""

TIMM_WORDS = ("ilsvrc", "imagenet-real", "imagenet-v2", "imagenet-a", "imagenet-r")
TIMM_SETS = (*TIMM_WORDS, "imagenet-sketch")

ALL = bitzoo.list_claims()


def values(model):
    return {claim.id: claim.value for claim in claims_of(model)}


def rows(table):
    return [line.split() for line in table.strip().splitlines()]


@pytest.mark.parametrize("model", README_CIFAR)
def test_cifar_of_the_readme(model):
    expected = {}
    for line in README_CIFAR[model].strip().splitlines():
        (dataset, shots), *cells = (cell.split() for cell in line.split("|"))
        name = f"{dataset.lower()}-{shots}" + ("" if shots == "full" else "shot")
        for suffix, cell in zip(("-tf2", "-jax", ""), cells, strict=True):
            if cell:
                lowest, median, highest = cell if len(cell) == 3 else (None, *cell, None)
                expected[name + suffix] = (median, lowest, highest)
    found = {
        claim.id: (claim.value, claim.lowest, claim.highest)
        for claim in claims_of(model)
        if claim.id.startswith("cifar")
    }
    assert found == {
        name: tuple(number if number is None else float(number) for number in numbers)
        for name, numbers in expected.items()
    }


def test_imagenet_of_the_readme():
    found = {}
    for line in README_IMAGENET.strip().splitlines():
        shots, *cells = (cell.strip() for cell in line.split("|"))
        name = "ilsvrc-full" if shots == "full" else f"ilsvrc-{shots}shot"
        for model, cell in zip(("R50x1", "R152x2", "R101x3"), cells, strict=True):
            found[model, name] = None if cell == "WIP" else float(cell)
    for (model, name), value in found.items():
        assert values(f"BiT-M-{model}").get(name) == value, (model, name)


def test_vtab_of_the_readme():
    for model, full, *groups in rows(README_VTAB):
        claim = get_claim(model, "vtab-1k-rerun")
        assert claim.value == float(full)
        names = ("natural", "structured", "specialized")
        assert claim.parts == dict(zip(names, map(float, groups), strict=True))


def test_the_papers_tables():
    words = {"ILSVRC-2012": "ilsvrc-full", "CIFAR-10": "cifar10-full", "CIFAR-100": "cifar100-full"}
    words |= {"Pets": "pets-full", "Flowers": "flowers-full", "VTAB": "vtab-1k"}
    for model, *cells in rows(PAPER):
        expected = dict(zip(map(words.get, cells[::2]), map(float, cells[1::2]), strict=True))
        assert expected.items() <= values(f"{model}-R152x4").items()
    top5 = [values(f"BiT-{size}-R152x4")["ilsvrc-full-top5"] for size in "SML"]
    assert top5 == [95.65, 97.69, 98.46]


def test_timms_results():
    for table, metric, words, first in (
        (TIMM, "top1", TIMM_SETS, 1),
        (TIMM_TOP5, "top5", TIMM_SETS, 0),
    ):
        for name, *cells in rows(table):
            spec = bitzoo.get_spec(f"resnetv2_{name}")
            for word, cell in zip(words, cells[first:], strict=True):
                claim = get_claim(spec.name, f"{word}-{metric}-timm")
                assert claim.value == float(cell), claim
                assert claim.metric.replace("-", "") == metric
                if first:
                    assert claim.resolution == int(cells[0]) == spec.resolution
    for name, *cells in rows(TIMM_CLEAN):
        found = values(bitzoo.get_spec(f"resnetv2_{name}").name)
        ids = [f"imagenet-{s}-clean-{m}-timm" for s in "ar" for m in ("top1", "top5")]
        assert [found[one] for one in ids] == list(map(float, cells))


def test_distillation():
    found = {
        (claim.model, claim.value)
        for claim in ALL
        if claim.model.startswith("BiT-R") and "timm" not in claim.id
    }
    assert found == {
        *[("BiT-R50x1_224", value) for value in (82.8, 82.82)],
        *[("BiT-R50x1_160", value) for value in (80.5, 80.49)],
        ("BiT-R152x2_T_224", 83.0),
        *[("BiT-R152x2_T_384", value) for value in (84.3, 83.7)],
        ("BiT-R152x2_T_flowers128", 97.82),
        ("BiT-R152x2_T_pet128", 91.03),
        ("BiT-R152x2_T_food128", 86.24),
        ("BiT-R152x2_T_sun128", 74.22),
    }


def test_there_are_no_other_figures():
    """Counted by hand from the tables above."""
    readme = 18 + 18 + 12 + 8 + 2
    timm = 9 * 8 * 2
    paper = 3 * (6 + 1) + 5 + 1
    distillation = 4 + 3 + 4 + 4 + 1
    assert len(ALL) == readme + timm + paper + distillation == 245


# --- what each row says ---------------------------------------------------------------------------


def test_every_figure_has_a_command_or_a_reason():
    assert len({(claim.model, claim.id) for claim in ALL}) == len(ALL)
    for claim in ALL:
        assert (claim.command is None) == bool(claim.reason) == (claim.protocol is None)
        assert 0 < claim.value < 100
        assert claim.source.startswith("https://")
        assert claim.note
        if claim.command:
            assert claim.command.startswith(f"bitzoo reproduce {claim.model} --claim {claim.id}")
    without = [claim for claim in ALL if claim.command is None]
    assert Counter(claim.model for claim in without) == {"BiT-L-R152x4": 13, "BiT-M-R50x1": 5}
    assert all(
        "never released" in claim.reason for claim in without if claim.model == "BiT-L-R152x4"
    )


def test_the_catalogue_has_the_same_figures():
    for name in bitzoo.list_models():
        metrics = bitzoo.get_spec(name).metrics
        assert [(metric.claim, metric.value, metric.command) for metric in metrics] == [
            (claim.id, claim.value, claim.command) for claim in claims_of(name)
        ]


@pytest.mark.parametrize(
    ("framework", "train"),
    [("", "tfds:cifar10@train"), ("-tf2", "tfds:cifar10@train[:98%]")],
)
def test_which_images_a_figure_was_trained_on(framework, train):
    protocol = get_claim("BiT-M-R50x1", f"cifar10-full{framework}").protocol
    assert protocol.data == {"train": train, "test": "tfds:cifar10@test"}
    assert asdict(protocol)["options"] == {"edition": "released", "batch_size": 128, "lr": 0.001}
    assert protocol.runs == 5
    assert any("mirrors every training image" in text for text in protocol.differences) == bool(
        framework
    )


def test_protocols():
    shot = get_claim("BiT-M-R101x3", "cifar100-5shot-jax").protocol
    assert (shot.action, shot.options["shots"]) == ("fewshot", (5,))
    assert shot.data == {"train": "tfds:cifar100@train[:98%]", "test": "tfds:cifar100@test"}
    ilsvrc = get_claim("BiT-M-R152x2", "ilsvrc-full").protocol
    assert ilsvrc.data == {
        "train": "tfds:imagenet2012@train",
        "test": "tfds:imagenet2012@validation",
    }
    assert (ilsvrc.action, ilsvrc.runs, dict(ilsvrc.options)) == (
        "finetune",
        1,
        {"edition": "released"},
    )
    paper = get_claim("BiT-S-R152x4", "pets-full").protocol
    assert (paper.runs, dict(paper.options)) == (3, {"edition": "paper"})
    assert get_claim("BiT-M-R152x4", "vtab-1k").protocol.action == "vtab"
    assert get_claim("BiT-M-R152x4", "vtab-1k-rerun").protocol.action == "vtab-released"
    sources = {claim.protocol.data for claim in claims_of("BiT-R50x1_224")}
    assert sources == {
        "tfds:imagenet2012@validation",
        "tfds:imagenet2012_real@validation",
        "tfds:imagenet_v2/matched-frequency@test",
        "tfds:imagenet_a@test",
        "tfds:imagenet_r@test",
        "tfds:imagenet_sketch@test",
        None,
    }


def test_where_sources_differ_it_is_said():
    for claim in ("ilsvrc-top1", "ilsvrc-top1-paper"):
        (remark,) = get_claim("BiT-R152x2_T_384", claim).remarks
        assert all(figure in remark for figure in ("84.3", "83.7", "83.858"))
    assert "94.3" in get_claim("BiT-M-R50x1", "cifar10-full").remarks[0]
    assert "73.51" in get_claim("BiT-M-R152x4", "vtab-1k").remarks[0]


def test_unknown_figures():
    with pytest.raises(
        UsageError, match=r"None is called 'x': .* about BiT-R50x1_160: ilsvrc-top1, "
    ):
        get_claim("BiT-R50x1_160", "x")
    with pytest.raises(UsageError, match="No figure was published about BiT-S-R50x1"):
        get_claim("BiT-S-R50x1", "ilsvrc-full")


# --- the list -------------------------------------------------------------------------------------


def run(*words, code=0):
    result = CliRunner().invoke(app, ["reproduce", *words])
    assert result.exit_code == code, result.output
    return result


def test_the_list_has_every_figure_in_80_columns():
    result = run("--list")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(result.stdout.split())
    for claim in ALL:
        assert f"{claim.id}: {claim.metric} {claim.value:g} %" in text
        assert (claim.command or f"not reproducible: {claim.reason}") in text
    assert "245 published figures, 227 of them with a command" in result.stderr


def test_the_list_of_one_model():
    lines = run("--list", "resnetv2_50x1_bit.goog_distilled_in1k").stdout.splitlines()
    assert lines[0] == "BiT-R50x1_224"
    assert sum(line.startswith("  ilsvrc") for line in lines) == 4
    assert run("BiT-S-R50x1", "--list").stdout == ""
    assert "not a name in the catalogue" in run("--list", "nonsense", code=2).stderr


def test_the_list_as_json():
    import json

    (found,) = (
        row
        for row in json.loads(run("--list", "BiT-M-R50x1", "--json").stdout)
        if row["claim"] == "cifar10-1shot-tf2"
    )
    assert found == {
        "model": "BiT-M-R50x1",
        "claim": "cifar10-1shot-tf2",
        "metric": "top-1",
        "dataset": "CIFAR-10",
        "value": 54.4,
        "lowest": 49.9,
        "highest": 60.2,
        "parts": {},
        "resolution": None,
        "source": "https://github.com/google-research/big_transfer README",
        "note": "fine-tuned from this checkpoint on 1 example per class; TensorFlow 2, batch 128, "
        "lr 0.001; median (of train[:98%])",
        "remarks": [],
        "command": "bitzoo reproduce BiT-M-R50x1 --claim cifar10-1shot-tf2",
        "reason": "",
        "protocol": {
            "action": "fewshot",
            "in_words": "fine-tuned on 1 image per class, BiT-HyperRule of the released code, "
            "batch 128, learning rate 0.001, median of 5 runs",
            "data": {"train": "tfds:cifar10@train[:98%]", "test": "tfds:cifar10@test"},
            "needs": "",
            "options": {"edition": "released", "batch_size": 128, "lr": 0.001, "shots": [1]},
            "runs": 5,
            "versions": "",
            "differences": found["protocol"]["differences"],
        },
    }
    assert len(found["protocol"]["differences"]) == 3


def test_a_name_that_is_none():
    with pytest.raises(UnknownModelError):
        bitzoo.list_claims("nonsense")
    assert bitzoo.list_claims("BiT-S-R50x1") == []
