"""PIRL pre-training with a memory bank that is sharded over the workers."""
