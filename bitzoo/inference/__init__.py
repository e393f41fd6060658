"""A network ready to infer: its kernels standardized once, in the form that its device runs best.

`optimize` takes a model and returns a function of images; `backends` has the ways to run it,
`cpu_layers` what a CPU runs faster, `runner` what leads from pixels to logits; `evaluate` and
`predict` use these on data.
"""

from bitzoo.inference.optimize import Optimized, deviation, optimize

__all__ = ["Optimized", "deviation", "optimize"]
