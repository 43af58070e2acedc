"""What is asked of SLURM and told to it."""
