"""Checkpoint files: reading, converting, and proving that the conversion equals the original.

source  layouts  key_mapping  dtypes   checkpoints, axis orders, tensor names, dtypes
writer  formats/                       from files to tensors, and back
open  identify  state_dict             recognition by content; from tensors to an architecture
streaming  convert                     block by block from one file to the other
parity/                                both proofs, and their oracles
"""
