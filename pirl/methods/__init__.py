"""What is learned and how: networks, memory bank, losses, and the step of PIRL."""
