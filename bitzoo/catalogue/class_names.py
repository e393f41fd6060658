"""Class names of the released heads, in the order of their outputs.

The names are WordNet's, from timm's `ImageNetInfo`; importing timm loads torch, so that waits until
names are asked for. No names were released with the other heads (VTAB's 19 tasks).
"""

from __future__ import annotations

from bitzoo.errors import UsageError

LABEL_SETS = {
    "imagenet": "imagenet1k",
    "imagenet1k": "imagenet1k",
    "imagenet21k": "imagenet21k_goog",
    "imagenet21kgoog": "imagenet21k_goog",
}
"""Accepted spellings, without case, `-` and `_` -> the name that the catalogue and timm use.

`imagenet1k` is ILSVRC-2012; `imagenet21k_goog` is Google's ImageNet-21k, which has 21,843 classes,
two more than the public archive. Both are in the order of their synset ids.
"""


def class_names(label_set: str | None, *, descriptions: bool = True) -> list[str]:
    """Names of the classes, one for each output of the head.

    Args:
        label_set: ``imagenet1k`` or ``imagenet21k_goog``; None for a head without a label set.
        descriptions: Words ("tabby, tabby cat"); False gives WordNet ids ("n02123045").

    Returns:
        The names; element i belongs to logit i.

    Raises:
        UsageError: If no names are known; the message is the reason.
    """
    names, reason = class_names_or_reason(label_set, descriptions=descriptions)
    if names is None:
        raise UsageError(reason)
    return names


def class_names_or_reason(
    label_set: str | None, *, descriptions: bool = True
) -> tuple[list[str] | None, str]:
    """As `class_names`, but with (None, the reason) where it raises, and (names, "") otherwise."""
    known = " and ".join(dict.fromkeys(LABEL_SETS.values()))
    if label_set is None:
        return None, (
            f"This model has no class names: they are known for the heads {known}. "
            "Tell its outputs apart by their index."
        )
    subset = LABEL_SETS.get(label_set.lower().replace("-", "").replace("_", ""))
    if subset is None:
        return None, f"There are no class names for {label_set!r}; they are known for {known}."

    from timm.data.imagenet_info import ImageNetInfo

    # as a list the words; as a dictionary, whose keys are what list() takes, the ids
    return list(ImageNetInfo(subset).label_descriptions(as_dict=not descriptions)), ""
