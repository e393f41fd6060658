"""Cited facts for cards, as data: training sets, their known problems, licence, citations.

Nothing here was measured by this project. Each sentence has its source next to it.
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
    """A sentence and its source."""

    text: str
    source: str


@dataclass(frozen=True)
class TrainingSet:
    """What a network was trained on.

    Attributes:
        title: Its usual name.
        hub_id: Its id on the Hub, for the card's metadata.
        facts: What it is, and its known problems.
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
            "Each photograph has one label even if it shows several things, which affects scores "
            "on the validation set; reassessed labels exist.",
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
            "The hierarchy has classes within classes (a terrier, a dog, an animal), so a "
            "prediction can be right and still differ from the label.",
            PAPER,
        ),
        Fact(
            "The data set's own authors found more than half of ImageNet's person classes "
            "offensive or sensitive, and withdrew them. The network was trained before that and "
            "has outputs for them: do not classify people with it.",
            _PERSON_CLASSES,
        ),
    ),
)

TRAINING_SETS = {"ilsvrc-2012": _ILSVRC, "imagenet-21k": _IMAGENET_21K}
"""The catalogue's name of a data set -> facts about it."""

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
"""How a family was trained after its pre-training."""

LIMITS = (
    "It predicts one of its classes for every image, including images that show none of them.",
    "Its classes and photographs come from the web; ImageNet's are mostly from North America and "
    "Europe (https://arxiv.org/abs/1711.08536). This project has not measured how well it works on "
    "other images, nor whom it disadvantages.",
    "It is a research model. It was not made or tested for decisions about people, for medicine, "
    "or for any use where a wrong prediction does harm.",
)

NUMERICS = (
    "Google's code standardizes kernels with eps = 1e-10, timm and transformers with 1e-8. For "
    "kernels of the usual scale that changes logits by about a millionth, for very small kernels "
    "(standard deviation 0.001) by one percent; bitzoo uses Google's value."
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
    """Return the text of a licence, or None if bitzoo does not have it."""
    if license_id != APACHE:
        return None
    return Path(__file__).with_name("apache-2.0.txt").read_text(encoding="utf-8")
