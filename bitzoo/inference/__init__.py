"""A network readied to infer: its kernels standardized once, in the form that its device runs best.

`optimize` takes a model and returns a function of images; `backends` has the ways to run it,
`cpu_layers` what a CPU runs faster, `pixels` what leads from pictures to logits.
"""

from bitzoo.inference.optimize import Optimized, deviation, optimize

__all__ = ["Optimized", "deviation", "optimize"]
