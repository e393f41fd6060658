"""bitzoo."""
