"""Image data sets, from listing a source to the batches that a network trains on.

readers  folder  manifest  hf_datasets    list the images and labels of a source
dataset  splits  problems  validation     the data set, its splits, and its problems
brightness                                whether anything can be seen in the images
decode_workers  pixel_cache  image_store  decode images once and map them into memory
sampler  loader                           batch n, a pure function of (seed, n), as tensors
"""
