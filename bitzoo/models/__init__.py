"""The BiT network: architectures as data, layers, the torch modules, and image preprocessing."""
