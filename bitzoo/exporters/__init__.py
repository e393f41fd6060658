"""Other ecosystems' files of a network: ONNX, OpenVINO, torch.export, TensorFlow SavedModel.

`graph` is what all torch-born formats are traced from; a module per format writes and runs it;
`export` writes under a temporary name, judges the written file on probe images, and names it.
"""
