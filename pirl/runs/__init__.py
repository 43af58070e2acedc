"""The run folder: names, checkpoints, numbers and logs."""
