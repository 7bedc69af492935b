"""Episodes: what they are, where they come from, how they are stored, split, windowed and looked at."""
