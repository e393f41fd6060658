"""The network: its architecture as numbers, its layers, and how images are prepared for it."""
