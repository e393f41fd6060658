"""Every figure that others published about the checkpoints, with the protocol behind it.

A `Claim` is one figure: whose it is, what was measured, on what, how, and what `bitzoo reproduce`
runs to measure it again, or why it cannot. The numbers themselves are in
`bitzoo.catalogue.published_figures`. Nothing here was measured by this project.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from bitzoo.catalogue import published_figures as figures
from bitzoo.catalogue.evaluation_sets import EVALUATION_SETS
from bitzoo.catalogue.metadata import (
    BIG_TRANSFER,
    BIG_VISION_DISTILL,
    DISTILLATION_PAPER,
    PAPER,
    TEACHER_TASKS,
    TIMM,
    VTAB,
    Metric,
)
from bitzoo.catalogue.protocols import Claim, Protocol
from bitzoo.errors import UsageError

__all__ = ["Claim", "Protocol", "claims_of", "get_claim", "metrics_of"]


def claims_of(model: str) -> tuple[Claim, ...]:
    """Return the published figures of a checkpoint by catalogue name; empty if there are none."""
    return _claims().get(model, ())


def metrics_of(model: str) -> tuple[Metric, ...]:
    """Return the same figures as the catalogue's entry has them."""
    return tuple(claim.metric_row for claim in claims_of(model))


def get_claim(model: str, claim: str | None) -> Claim:
    """Return a published figure of a checkpoint.

    Args:
        model: The catalogue name.
        claim: The figure's id; None if the user named none.

    Raises:
        UsageError: If there is none of that id; the message lists those of the model.
    """
    known = claims_of(model)
    for one in known:
        if one.id == claim:
            return one
    if not known:
        raise UsageError(
            f"No figure was published about {model}, as far as the catalogue knows. "
            "`bitzoo reproduce --list` shows all figures."
        )
    found = "None of its figures was named" if claim is None else f"None is called {claim!r}"
    raise UsageError(
        f"{found}: `claim` must be one of the figures that were published about {model}: "
        f"{', '.join(one.id for one in known)}."
    )


@functools.cache
def _claims() -> dict[str, tuple[Claim, ...]]:
    """Return all figures by model, each model's in the order in which they are shown."""
    found: dict[str, list[Claim]] = {}
    for family in (_authors, _timm, _teachers, _paper, _readme, _transfers):
        for claim in family():
            found.setdefault(claim.model, []).append(claim)
    return {model: tuple(claims) for model, claims in found.items()}


_THESE = "these weights"
"""How the note of a figure begins that was measured on exactly the released weights."""
_FINE_TUNED = "fine-tuned from this checkpoint"


_TESTS = {data.title: data for data in EVALUATION_SETS}


class _Data(NamedTuple):
    title: str
    train: str
    test: str
    versions: str = ""

    @property
    def splits(self) -> dict[str, str]:
        return {"train": self.train, "test": self.test}


def _data(title: str, train: str, test: str = "", versions: str = "") -> _Data:
    """Return a data set to train on; its test images are those of `EVALUATION_SETS` if any."""
    return _Data(title, train, test or _TESTS[title].sources[0], versions)


_DATA = {
    "ilsvrc": _data("ILSVRC-2012", "tfds:imagenet2012@train"),
    "cifar10": _data("CIFAR-10", "tfds:cifar10@train", "tfds:cifar10@test"),
    "cifar100": _data("CIFAR-100", "tfds:cifar100@train", "tfds:cifar100@test"),
    "pets": _data("Oxford-IIIT Pets", "tfds:oxford_iiit_pet@train", versions="3."),
    "flowers": _data("Oxford Flowers-102", "tfds:oxford_flowers102@train"),
    "food101": _data("Food-101", "tfds:food101@train"),
    "sun397": _data("SUN397", "tfds:sun397/tfds@train"),
}
"""The data sets by the word that claims' ids begin with. ILSVRC-2012 is tested on its validation
images; Food-101 has its test images in TFDS's split ``validation``."""


# --- these weights, evaluated ---------------------------------------------------------------------


_TEACHER_384 = (
    "Three figures exist for it: 84.3 (README), 83.7 (text of the paper), 83.858 (timm's "
    "evaluation)."
)
_PIXELS = {"BiT-R50x1_224": 224, "BiT-R50x1_160": 160, "BiT-R152x2_T_224": 224} | {
    "BiT-R152x2_T_384": 384
}


def _authors() -> Iterator[Claim]:
    readme = f"{DISTILLATION_PAPER} and {BIG_VISION_DISTILL} README"
    rows = [("ilsvrc-top1", figures.DISTILLATION_README, readme)]
    rows.append(("ilsvrc-top1-paper", figures.DISTILLATION_PAPER_TOP1, DISTILLATION_PAPER))
    for claim, values, source in rows:
        for model, value in values.items():
            yield Claim(
                model,
                claim,
                "top-1",
                _DATA["ilsvrc"].title,
                value,
                source,
                f"{_THESE}, by the authors",
                _evaluated("ILSVRC-2012"),
                resolution=_PIXELS[model],
                remarks=(_TEACHER_384,) if model == "BiT-R152x2_T_384" else (),
            )


_TIMM_SETS = {
    "imagenet": ("ilsvrc", "ILSVRC-2012"),
    "imagenet-real": ("imagenet-real", "ImageNet ReaL"),
    "imagenetv2-matched-frequency": ("imagenet-v2", "ImageNet-V2 matched frequency"),
    "imagenet-a": ("imagenet-a", "ImageNet-A"),
    "imagenet-a-clean": ("imagenet-a-clean", "ILSVRC-2012 (classes of ImageNet-A)"),
    "imagenet-r": ("imagenet-r", "ImageNet-R"),
    "imagenet-r-clean": ("imagenet-r-clean", "ILSVRC-2012 (classes of ImageNet-R)"),
    "sketch": ("imagenet-sketch", "ImageNet-Sketch"),
}
"""One of `figures.TIMM_SETS` -> what claims' ids begin with, and the data set."""


def _evaluated(title: str, versions: str = "", **options: str) -> Protocol:
    """Return the protocol of an evaluation; images that have no name are for the user to give."""
    data = _TESTS[title]
    named = data.sources[0] if data.sources else None
    needs = (
        ""
        if named
        else ("a folder with the validation images of only these 200 classes, by WordNet id")
    )
    if data.real:
        options["labels"] = "real"
    return Protocol("evaluate", named, needs, options, versions=versions)


def _timm() -> Iterator[Claim]:
    source = f"{TIMM} results/results-imagenet*.csv and results-sketch.csv"
    for model, (size, values) in figures.TIMM.items():
        for name, (top1, top5) in zip(figures.TIMM_SETS, values, strict=True):
            word, title = _TIMM_SETS[name]
            protocol = _evaluated(title)
            for metric, value in (("top-1", top1), ("top-5", top5)):
                yield Claim(
                    model,
                    f"{word}-{metric.replace('-', '')}-timm",
                    metric,
                    title,
                    value,
                    source,
                    f"{_THESE}, evaluated by timm",
                    protocol,
                    resolution=size,
                )


def _teachers() -> Iterator[Claim]:
    shorts = {"flowers": "flowers", "pets": "pet", "food101": "food", "sun397": "sun"}
    for name, (value, _) in figures.DISTILLATION_TASKS.items():
        data, short = _DATA[name], shorts[name]
        task, _ = TEACHER_TASKS[short]
        yield Claim(
            f"BiT-R152x2_T_{short}128",
            f"{name}-top1",
            "top-1",
            data.title,
            value,
            f"{DISTILLATION_PAPER} Table 4",
            f"{_THESE}, by the authors",
            _evaluated(data.title, data.versions, labels=task),
            resolution=128,
        )


# --- fine-tuned from these weights ----------------------------------------------------------------


_UNRELEASED = "The weights were never released (big_transfer#4, #50)."
_PAPER_REMARKS: dict[tuple[str, str], tuple[str, ...]] = {
    ("BiT-S-R152x4", "ilsvrc"): (
        "Table 7 of the same paper has 80.3 for the same network and images.",
    ),
    ("BiT-M-R152x4", "ilsvrc"): (
        "Table 7 of the same paper has 84.5 for the same network and images.",
    ),
    ("BiT-L-R152x4", "ilsvrc"): (
        "Table 7 of the same paper, and its first version, have 87.8 for the same network.",
    ),
    ("BiT-S-R152x4", "flowers"): (
        "Table 7 of the same paper has 91.0 for the same network and images.",
    ),
    ("BiT-S-R152x4", "vtab-1k"): (
        "Table 5 of the same paper has more for the small R50x1: 70.39.",
    ),
    ("BiT-M-R152x4", "vtab-1k"): (
        "The authors' later runs, whose checkpoints were released, reached 73.51.",
    ),
}
_PAPER_DIFFERENCES = {
    "pets": (
        "The paper does not say which training images it used; here all of TFDS's train split.",
    ),
    "flowers": (
        "The paper does not say which training images it used; here TFDS's train split (1,020), "
        "as in the authors' later code (google-research/big_vision, configs/transfer.py), without "
        "its validation split (1,020).",
    ),
    "vtab-1k": (
        "The paper does not say whether the median is taken before or after the mean over tasks; "
        "here it is the median of each task's runs.",
    ),
}
_PAPER_RUNS = 3


def _paper() -> Iterator[Claim]:
    source = f"{PAPER} Tables 1 and 2"
    for column, model in enumerate(figures.PAPER_MODELS):
        unreleased = model.startswith("BiT-L")
        for name, values in figures.PAPER_TOP1.items():
            note = f"{_FINE_TUNED} with BiT-HyperRule; median"
            if unreleased:
                deviation = figures.PAPER_DEVIATION[name]
                note += f" of three runs, standard deviation {deviation:g}"
            claim = _by_paper(model, name, values[column], source, note)
            yield claim
            if name == "ilsvrc":
                top5 = figures.PAPER_TOP5[column]
                note = f"{_FINE_TUNED} with BiT-HyperRule"
                own = replace(claim, id="ilsvrc-full-top5", metric="top-5", value=top5)
                yield replace(own, source=PAPER, note=note, remarks=())
    large = figures.PAPER_MODELS[-1]
    for (name, shots), value in figures.PAPER_FEW_SHOT.items():
        note = f"{_FINE_TUNED} on {shots} examples per class with BiT-HyperRule; median"
        claim = _by_paper(large, name, value, f"{PAPER} section 3.4", note)
        yield replace(claim, id=f"{name}-{shots}shot", remarks=())
    searched = _by_paper(
        large,
        "vtab-1k",
        figures.PAPER_VTAB_SEARCH,
        f"{PAPER} appendix A",
        f"{_FINE_TUNED}; hyper-parameters chosen for each task out of 40 random ones",
    )
    yield replace(
        searched,
        id="vtab-1k-search",
        reason=f"{_UNRELEASED} A search of hyper-parameters is not implemented either.",
    )


def _by_paper(model: str, name: str, value: float, source: str, note: str) -> Claim:
    """Return a figure of the paper; BiT-L's cannot be measured."""
    vtab = name == "vtab-1k"
    data = None if vtab else _DATA[name]
    protocol = Protocol(
        "vtab" if vtab else "finetune",
        data.splits if data else None,
        options={} if vtab else {"edition": "paper"},
        runs=_PAPER_RUNS,
        versions=data.versions if data else "",
        differences=_PAPER_DIFFERENCES.get(name, ()),
    )
    unreleased = model.startswith("BiT-L")
    return Claim(
        model,
        name if vtab else f"{name}-full",
        "mean top-1" if vtab else "top-1",
        data.title if data else "VTAB-1k",
        value,
        source,
        note,
        None if unreleased else protocol,
        _UNRELEASED if unreleased else "",
        remarks=_PAPER_REMARKS.get((model, name), ()),
    )


_README = f"{BIG_TRANSFER} README"
_EXAMPLES = {1: "1 example per class", 5: "5 examples per class", None: "the full training set"}
_FRAMEWORKS = {"pytorch": "PyTorch", "tf2": "TensorFlow 2", "jax": "JAX"}
_PART = "train[:98%]"
"""What the code for TensorFlow 2 and JAX trains on; that for PyTorch takes all training images."""
_UNSEEDED = "That code draws the examples without a seed; here each run has its own seed."
_TENSORFLOW_DIFFERENCES = (
    "That code mirrors every training image and no test image (big_transfer#62); here training "
    "images are mirrored at random.",
    "That code leaves out the last incomplete batch of the test images; here all are counted.",
    "That code resizes without antialiasing; here images are resized as PyTorch's code did.",
)
_ASKED = {
    "BiT-M-R50x1": "A user of that code reports 94.3 (big_transfer#59, unanswered).",
    "BiT-M-R101x3": "A user of that code reports 93.2 (big_transfer#59, unanswered).",
}
_README_RUNS = 5


def _readme() -> Iterator[Claim]:
    for model, frameworks in figures.README_CIFAR.items():
        for framework, rows in frameworks.items():
            for name, spreads in rows.items():
                for shots, spread in zip(figures.SHOTS, spreads, strict=True):
                    yield _readme_cifar(model, framework, name, shots, spread)
        yield from _readme_ilsvrc(model)
    for model, means in figures.README_VTAB.items():
        yield _readme_vtab(model, means)


def _readme_cifar(
    model: str, framework: str, name: str, shots: int | None, spread: figures.Spread
) -> Claim:
    data = _DATA[name]
    torch = framework == "pytorch"
    splits = data.splits if torch else {**data.splits, "train": data.train.replace("train", _PART)}
    options: dict[str, Any] = {"edition": "released", "batch_size": 128, "lr": 0.001}
    if shots:
        options["shots"] = (shots,)
    differences = (_UNSEEDED,) if torch and shots else () if torch else _TENSORFLOW_DIFFERENCES
    several = len(spread) == 3
    note = (
        f"{_FINE_TUNED} on {_EXAMPLES[shots]}; {_FRAMEWORKS[framework]}, batch 128, lr 0.001; "
        "median" + ("" if torch else f" (of {_PART})")
    )
    return Claim(
        model,
        f"{name}-{f'{shots}shot' if shots else 'full'}" + ("" if torch else f"-{framework}"),
        "top-1",
        data.title,
        spread[1] if several else spread[0],
        _README,
        note,
        Protocol(
            "fewshot" if shots else "finetune",
            splits,
            options=options,
            runs=_README_RUNS,
            differences=differences,
        ),
        lowest=spread[0] if several else None,
        highest=spread[2] if several else None,
        remarks=(_ASKED[model],)
        if name == "cifar10" and shots is None and torch and model in _ASKED
        else (),
    )


def _readme_ilsvrc(model: str) -> Iterator[Claim]:
    data = _DATA["ilsvrc"]
    for shots, value in zip(figures.SHOTS, figures.README_ILSVRC[model], strict=False):
        options: dict[str, Any] = {"edition": "released"}
        if shots:
            options["shots"] = (shots,)
        yield Claim(
            model,
            f"ilsvrc-{f'{shots}shot' if shots else 'full'}",
            "top-1",
            data.title,
            value,
            _README,
            f"{_FINE_TUNED} on {_EXAMPLES[shots]}; PyTorch, BiT-HyperRule; test run",
            Protocol(
                "fewshot" if shots else "finetune",
                data.splits,
                options=options,
                differences=(_UNSEEDED,) if shots else (),
            ),
        )


def _readme_vtab(model: str, means: figures.VtabMeans) -> Claim:
    return Claim(
        model,
        "vtab-1k-rerun",
        "mean top-1",
        "VTAB-1k",
        means.mean,
        _README,
        f"{_FINE_TUNED}; the authors' re-runs of the paper's models, whose checkpoints are "
        "released",
        Protocol(
            "vtab-released",
            runs=3,
            differences=(
                f"How the three runs become one figure is not stated; here it is the median of "
                f"each task's runs, and then the mean over the tasks, as {VTAB} defines it.",
            ),
        ),
        parts={name: getattr(means, name) for name in ("natural", "specialized", "structured")},
        remarks=(
            "To train anew instead of evaluating the released checkpoints, use `bitzoo vtab`.",
        ),
    )


def _transfers() -> Iterator[Claim]:
    """Baselines of the distillation paper, which start from BiT-M R50x1."""
    model, missing = "BiT-M-R50x1", "Optimizer, weight decay and batch size were not published"
    for name, (_, value) in figures.DISTILLATION_TASKS.items():
        yield Claim(
            model,
            f"{name}-transfer-128px",
            "top-1",
            _DATA[name].title,
            value,
            f"{DISTILLATION_PAPER} Table 4",
            f"{_FINE_TUNED}, as a baseline for distillation",
            reason=f"{missing} (big_transfer#70 asks for them).",
            resolution=128,
        )
    yield Claim(
        model,
        "ilsvrc-transfer-224px",
        "top-1",
        _DATA["ilsvrc"].title,
        figures.DISTILLATION_R50X1_224,
        DISTILLATION_PAPER,
        f"{_FINE_TUNED} and tested at 224 px",
        reason="The recipe of the fine-tuning at 224 px was not published.",
        resolution=224,
    )
