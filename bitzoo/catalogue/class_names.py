"""Class names of the released heads, in the order of their outputs.

The names are WordNet's, from timm's `ImageNetInfo`. Importing timm loads torch, so it is imported
only when names are requested. No names were released with the other heads (VTAB's 19 tasks).
"""

from __future__ import annotations

from bitzoo.errors import UsageError

LABEL_SETS = {
    "imagenet": "imagenet1k",
    "imagenet1k": "imagenet1k",
    "imagenet21k": "imagenet21k_goog",
    "imagenet21kgoog": "imagenet21k_goog",
}
"""Accepted spellings, in lower case without `-` and `_` -> the name in the catalogue and in timm.

`imagenet1k` is ILSVRC-2012; `imagenet21k_goog` is Google's ImageNet-21k, which has 21,843 classes,
two more than the public archive. Both are in the order of their synset ids.
"""


def class_names(label_set: str | None, *, descriptions: bool = True) -> list[str]:
    """Return the names of the classes, one per output of the head.

    Args:
        label_set: ``imagenet1k`` or ``imagenet21k_goog``; None for a head without a label set.
        descriptions: True for words ("tabby, tabby cat"); False for WordNet ids ("n02123045").

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
    """Return (names, ""), or (None, the reason) where `class_names` raises."""
    known = " and ".join(dict.fromkeys(LABEL_SETS.values()))
    if label_set is None:
        return None, (
            f"This model has no class names: they are known only for the heads {known}. "
            "Refer to its outputs by index."
        )
    subset = LABEL_SETS.get(label_set.lower().replace("-", "").replace("_", ""))
    if subset is None:
        return None, f"There are no class names for {label_set!r}; they are known only for {known}."

    from timm.data.imagenet_info import ImageNetInfo

    # A list holds the words; list() of the dictionary gives its keys, which are the ids.
    return list(ImageNetInfo(subset).label_descriptions(as_dict=not descriptions)), ""
