"""A run and what it leaves: fine-tuning from end to end, in a folder that can be resumed."""
