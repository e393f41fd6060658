"""Model cards: what a published checkpoint is, with cited facts and with what was proven.

`facts` holds what others wrote about data and models, with sources; `render` fills the template of
released and converted checkpoints; `runs` completes the draft that a fine-tuning run leaves.
"""
