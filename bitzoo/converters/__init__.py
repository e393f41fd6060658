"""Checkpoint files: reading, converting, and proving that the conversion is the original.

    source  layouts  key_mapping  dtypes   what a checkpoint, an axis order and a name are
    writer  formats/                       files to tensors, and back
    open  identify  state_dict             recognition by content; tensors to an architecture
    streaming  convert                     block by block from one file to the other
    parity/                                both proofs, and the oracles they ask
"""
