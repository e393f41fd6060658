"""Image data sets, from names and labels to the batches that a network trains on.

readers  folder  manifest  hf_datasets    which images and labels a source lists
dataset  splits  problems  validation     one data set, its splits, and what is wrong with it
decode_workers  pixel_cache  image_store  decoded once, mapped into memory
sampler  loader                           batch n, a pure function of (seed, n), as tensors
"""
