"""Proofs that an output is its source: weights bit for bit, logits against independent oracles."""
