"""What timm's own ResNet-v2 networks compute differently from BiT with the same tensors.

timm has two families in timm/models/resnetv2.py: ``resnetv2_50x1_bit`` and so on are BiT, and
``resnetv2_50``, ``resnetv2_101`` are networks of its own, with batch normalization and without
weight standardization. Their tensors have the names and shapes of `R50x1-BN-noWS`, but two numbers
differ: eps is 1e-5 instead of 1e-3, and the pool after the stem pads with minus infinity instead of
zero, so that a border window of negative values gives a negative number.
"""

from __future__ import annotations

from typing import TypeVar

from bitzoo.models.batch_norm import BatchNormReLU
from bitzoo.models.bit import Backbone
from bitzoo.models.layers import Stem

TIMM_EPS = 1e-5
"""torch's default, which timm's `BatchNormAct2d` has too."""

AnyBackbone = TypeVar("AnyBackbone", bound=Backbone)


def with_timm_numbers(model: AnyBackbone) -> AnyBackbone:
    """Let a network compute what timm's ``resnetv2_50`` and the like compute, in place.

        model = with_timm_numbers(BiT(Architecture.parse("R50x1-BN-noWS"), 1000))
        model.load_state_dict(timm.create_model("resnetv2_50").state_dict())

    Folding and optimizing keep it; `bitzoo.export` refuses it. It is a property of this object, not
    of its tensors: no weight file says it, so such a model is not for saving under a name of
    bitzoo.

    Args:
        model: A network that is not folded; its architecture needs no batch normalization.

    Returns:
        The same object.
    """
    for module in model.modules():
        if isinstance(module, BatchNormReLU):
            module.eps = TIMM_EPS
        elif isinstance(module, Stem):
            module.border = float("-inf")
    return model
