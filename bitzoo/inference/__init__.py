"""Fast inference: folded kernels, in the form that runs best on the device.

`optimize` turns a model into a function of images, with one of the `backends`; `cpu_layers` has the
layers that are faster on a CPU. `runner` feeds it pixels; `predict`, `evaluate` and `metrics` use
it on images.
"""

from bitzoo.inference.optimize import Optimized, deviation, optimize

__all__ = ["Optimized", "deviation", "optimize"]
