"""Runs: training from end to end, in a run folder that can be resumed, with its artifacts."""
