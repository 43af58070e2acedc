"""Evaluation protocols, a file for each; `pirl.evaluate.evaluate` has the table of them."""
