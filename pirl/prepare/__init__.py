"""From a team's images to a data set."""
