"""Files for other runtimes: ONNX, OpenVINO, torch.export, TensorFlow SavedModel.

`graph` has the module that all formats except SavedModel are traced from; one module per format
writes and runs files. `export` writes under a temporary name, compares the written file with the
reference on probe images, and then renames it.
"""
