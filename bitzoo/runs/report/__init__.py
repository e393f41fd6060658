"""The artifacts of a finished run: model folder, evaluation, report and model card."""
