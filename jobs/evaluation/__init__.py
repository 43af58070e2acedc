"""Measuring and embedding networks: what is asked, and who carries it out."""
