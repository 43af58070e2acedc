"""Boxes around objects: a detector on a trunk, how it is trained, and what its boxes are worth."""
