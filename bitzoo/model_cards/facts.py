"""Cited facts for cards, as data: training sets, their known faults, licence, citations.

Nothing here was measured by this project. A sentence stands with the source that says it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bitzoo.catalogue.metadata import BIG_TRANSFER, DISTILLATION_PAPER, PAPER, VTAB

_RELABELLED = "https://arxiv.org/abs/2006.07159"
_LABEL_ERRORS = "https://arxiv.org/abs/2103.14749"
_PERSON_CLASSES = "https://arxiv.org/abs/1912.07726"


@dataclass(frozen=True)
class Fact:
    """A sentence and who says so."""

    text: str
    source: str


@dataclass(frozen=True)
class TrainingSet:
    """What a network was trained on.

    Attributes:
        title: What people call it.
        hub_id: Its id on the Hub, for the card's metadata.
        facts: What it is, and what is known to be wrong with it.
    """

    title: str
    hub_id: str
    facts: tuple[Fact, ...]


_ILSVRC = TrainingSet(
    "ILSVRC-2012 (ImageNet-1k)",
    "imagenet-1k",
    (
        Fact("1.28 million photographs, each with one of 1,000 classes.", PAPER),
        Fact(
            "A photograph has one label even where it shows several things, and scores on the "
            "validation set are affected by this; reassessed labels exist.",
            _RELABELLED,
        ),
        Fact("At least 6 % of the validation labels are estimated to be wrong.", _LABEL_ERRORS),
    ),
)
_IMAGENET_21K = TrainingSet(
    "ImageNet-21k",
    "imagenet-21k",
    (
        Fact(
            "14.2 million photographs in 21,000 classes of the WordNet hierarchy; a photograph may "
            "have several labels.",
            PAPER,
        ),
        Fact(
            "The hierarchy has classes within classes (a terrier, a dog, an animal), so an answer "
            "may be right and still not be the label.",
            PAPER,
        ),
        Fact(
            "More than half of ImageNet's classes of persons were found offensive or sensitive by "
            "the data set's own authors, who withdrew them. The network was trained before that "
            "and has outputs for them: do not classify people with it.",
            _PERSON_CLASSES,
        ),
    ),
)

TRAINING_SETS = {"ilsvrc-2012": _ILSVRC, "imagenet-21k": _IMAGENET_21K}
"""By the catalogue's name of the data set."""

FAMILY_NOTES: dict[str, tuple[Fact, ...]] = {
    "BiT-M-ILSVRC2012": (Fact("Fine-tuned on ILSVRC-2012 with BiT-HyperRule.", BIG_TRANSFER),),
    "BiT-distilled": (
        Fact("Distilled from a larger BiT network on ILSVRC-2012.", DISTILLATION_PAPER),
    ),
    "BiT-teacher": (
        Fact("Fine-tuned on ILSVRC-2012 to teach smaller networks.", DISTILLATION_PAPER),
    ),
    "BiT-teacher-128": (
        Fact("Fine-tuned at 128 px to teach smaller networks.", DISTILLATION_PAPER),
    ),
    "BiT-M-VTAB": (Fact("Fine-tuned on one task of the Visual Task Adaptation Benchmark.", VTAB),),
}
"""What happened to a family after its pre-training."""

LIMITS = (
    "It answers with one of its classes for any image, also for one that shows none of them.",
    "Its classes and photographs come from the web; ImageNet's are mostly from North America and "
    "Europe (https://arxiv.org/abs/1711.08536). Nobody has measured here how well it does on "
    "others, nor whom it disadvantages.",
    "It is a research model. It was not made or tested for decisions about people, for medicine, "
    "or for anything where a wrong answer does harm.",
)

NUMERICS = (
    "Google's code standardizes kernels with eps = 1e-10, timm and transformers with 1e-8. On "
    "kernels of the usual scale that changes logits by about a millionth, on very small kernels "
    "(standard deviation 0.001) by a percent; bitzoo uses Google's value."
)

_BIT_PAPER = """\
@inproceedings{kolesnikov2020big,
  title     = {Big Transfer ({BiT}): General Visual Representation Learning},
  author    = {Alexander Kolesnikov and Lucas Beyer and Xiaohua Zhai and Joan Puigcerver and
               Jessica Yung and Sylvain Gelly and Neil Houlsby},
  booktitle = {European Conference on Computer Vision},
  year      = {2020},
  url       = {https://arxiv.org/abs/1912.11370}
}"""
_DISTILLATION = """\
@inproceedings{beyer2022knowledge,
  title     = {Knowledge distillation: A good teacher is patient and consistent},
  author    = {Lucas Beyer and Xiaohua Zhai and Am\\'elie Royer and Larisa Markeeva and
               Rohan Anil and Alexander Kolesnikov},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  url       = {https://arxiv.org/abs/2106.05237}
}"""


def citations(family: str | None) -> str:
    """Return BibTeX for a family of the catalogue, or for BiT in general."""
    distilled = family is not None and family.startswith(("BiT-distilled", "BiT-teacher"))
    return "\n\n".join([_BIT_PAPER, _DISTILLATION] if distilled else [_BIT_PAPER])


APACHE = "apache-2.0"


def license_text(license_id: str | None) -> str | None:
    """Return the text of a licence, or None if bitzoo does not carry it."""
    if license_id != APACHE:
        return None
    return Path(__file__).with_name("apache-2.0.txt").read_text(encoding="utf-8")
