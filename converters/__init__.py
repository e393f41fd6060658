"""Checkpoint files: reading, converting, and proving that the conversion is the original.

Shipped as ``bitzoo.converters``. Layered, each module importing only from those before it::

    tensors  layouts  names  precision      what a checkpoint, an axis order and a name are
    slabs  packed                           numbers into files, and out of compressed ones
    reference  tensorflow_reference         the oracles
    serving_graph                           a SavedModel's own
    npz  safetensors_file  keras_h5         files to tensors, and back
    torch_file  tf_checkpoint
    folders  archives  sources              several files as one; recognition by content
    inventory  blocks                       tensors to an architecture; work in bounded blocks
    formats  outputs  transformers_folder   what can be written, how it appears, what lies beside
    state                                   state dicts
    weights_proof  logits_proof             the comparisons
    moving                                  a block's way from one file to the other
    pipeline  parity                        conversion, conversion with both proofs
"""
