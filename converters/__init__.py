"""Checkpoint files: reading, converting, and proving that the conversion is the original.

Shipped as ``bitzoo.converters``. Layered, each module importing only from those before it::

    tensors  layouts  names                 what a checkpoint, an axis order and a name are
    packed  npz  safetensors_file  sources  files to tensors, and back
    inventory  blocks                       tensors to an architecture; work in bounded blocks
    pipeline  state                         conversion; state dicts
    reference  proofs  parity               the oracle and the two proofs
"""
