"""What a sweep shows: tables and pictures."""
