"""Model cards for published checkpoints."""
