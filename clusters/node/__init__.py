"""What runs on the nodes of an allocation."""
