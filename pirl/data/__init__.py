"""What a data set is: its format, and the order in which its images are dealt."""
