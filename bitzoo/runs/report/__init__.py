"""What a finished run leaves for people: model folder, evaluation, report and model card."""
