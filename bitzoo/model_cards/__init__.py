"""Model cards: what a published checkpoint is, with cited facts and its proof.

`facts` has what others wrote about data and models, with sources; `render` fills the template for
released and converted checkpoints; `run_card` completes the draft that a fine-tuning run writes.
"""
