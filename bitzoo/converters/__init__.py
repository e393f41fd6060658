"""Checkpoint files: read them, convert them, and prove that the output equals the source.

source  layouts  key_mapping  dtypes   stored tensors, axis orders, names, rounding
writer  formats/                       files to tensors, and back
open  identify  state_dict             recognize formats by content; tensors to an architecture
streaming  convert                     from one file to the other, block by block
parity/                                the proofs of weights and logits, and their oracles
"""
