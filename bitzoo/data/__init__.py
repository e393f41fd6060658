"""Image data sets, from listing a source to the batches that a network trains on.

readers  folder  manifest                 list the images and labels of a source
source_names  tfds_datasets  hf_datasets  data sets that libraries prepared, by name
torchvision_datasets  imagenet_devkit
dataset  splits  problems  validation     the data set, its splits, and its problems
brightness                                whether anything can be seen in the images
decode_workers  pixel_cache               decode images once and read them from a cache
decoded_images  image_store
rows_while_checking  kept_checks          check, hash and decode in one pass; not again if unchanged
inception_crop                            or decode and crop them at each use
sampler  loader                           batch n, a pure function of (seed, n), as tensors
"""
