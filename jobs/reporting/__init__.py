"""The page that shows what runs have learned: what they left behind, its figures, and how it is served."""
