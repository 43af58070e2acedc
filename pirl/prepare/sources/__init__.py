"""Where images come from before they are a data set: a file for each kind, and the table of them."""
