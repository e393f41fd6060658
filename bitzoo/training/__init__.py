"""Training: recipes as data, and the loop that carries them out.

recipe  schedule  training_config                what to train, and how, as data
hyperrule  pretraining  recipe_text              rules that make recipes, and recipes in words
losses  optimizers                               what a recipe's words mean to torch
gradient_accumulation  activation_checkpointing  any batch size on a device of any size
micro_batch_size  distributed
trainer  checkpointing                           training that survives being killed
linear_probe                                     training of the head only
"""
