"""Protocols that train by SGD: one loop, batch norm over all ranks, what is counted, and subsets of the images."""
