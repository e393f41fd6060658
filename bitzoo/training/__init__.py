"""Recipes as data, and the loop that obeys them.

recipe  hyperrule                                 what is done, as data
gradient_accumulation  activation_checkpointing   a batch of any size on a device of any size
micro_batch_size  checkpointing
loop  linear_probe                                training that can be killed; the head alone
"""
