"""What runs the trials of a sweep, on Ray Tune."""
