"""What carries a run: Ray Train, torchrun, or this process alone."""
