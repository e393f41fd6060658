"""The paper's ablation as architectures: names, tensors, parameters."""

import dataclasses
import math

import pytest
import torch

from bitzoo.errors import ArchitectureError
from bitzoo.models.architecture import ARCHITECTURES, Architecture, Role
from bitzoo.models.bit import BiT

GRID = {
    "": ("group", True),
    "-BN": ("batch", True),
    "-noWS": ("group", False),
    "-BN-noWS": ("batch", False),
}


@pytest.mark.parametrize("ending", GRID)
@pytest.mark.parametrize("plain", ["R50x1", "R152x4", "R(1,1,1,1)x0.5", "R(1,2,3,4)x1.5"])
def test_a_name_and_its_architecture_are_inverses(plain, ending):
    norm, standardized = GRID[ending]
    architecture = Architecture.parse(plain + ending)
    assert (architecture.norm, architecture.weight_standardization) == (norm, standardized)
    assert architecture.name == plain + ending
    assert Architecture.parse(architecture.name, 5) == dataclasses.replace(architecture, in_chans=5)


@pytest.mark.parametrize("name", ["R50x1-bn", "R50x1-noWS-BN", "R50x1-GN", "R50x1-", "R50x1-BN-"])
def test_other_endings_are_no_names_and_the_message_says_which_are(name):
    with pytest.raises(ArchitectureError, match="-BN for batch normalization and -noWS for no"):
        Architecture.parse(name)


@pytest.mark.parametrize(
    "wrong", [{"norm": "layer"}, {"norm": None}, {"weight_standardization": 1}]
)
def test_other_values_are_refused(wrong):
    with pytest.raises(ArchitectureError, match=next(iter(wrong))):
        Architecture((1, 1, 1, 1), 0.5, **wrong)


def test_the_default_is_what_was_released():
    assert Architecture((3, 4, 6, 3)) == Architecture((3, 4, 6, 3), 1.0, 3, "group", True)
    assert all(a.norm == "group" and a.weight_standardization for a in ARCHITECTURES.values())


@pytest.mark.parametrize("ending", GRID)
def test_a_network_has_the_tensors_that_its_architecture_promises(ending):
    architecture = Architecture.parse("R(1,2,1,1)x0.5" + ending)
    with torch.device("meta"):
        network = BiT(architecture, 7)
    shapes = architecture.shapes(7)
    assert sorted(shapes.values()) == sorted(tuple(t.shape) for t in network.state_dict().values())
    params = sum(parameter.numel() for parameter in network.parameters())
    assert architecture.num_params(7) == params
    statistics = sum(math.prod(s) for slot, s in shapes.items() if slot.role.is_statistic)
    assert statistics == sum(buffer.numel() for buffer in network.buffers())
    assert (statistics > 0) == (architecture.norm == "batch")


def test_batch_norm_adds_two_statistics_to_each_of_49_norms_of_r50():
    shapes = Architecture.parse("R50x1-BN").shapes(0)
    means = [s for s in shapes if s.role in (Role.NORM_MEAN, Role.FINAL_NORM_MEAN)]
    variances = [s for s in shapes if s.role in (Role.NORM_VARIANCE, Role.FINAL_NORM_VARIANCE)]
    assert len(means) == len(variances) == 49
    # 23,500,352 without a head, as in the release: statistics are no parameters.
    assert Architecture.parse("R50x1-BN-noWS").num_params(0) == 23_500_352
