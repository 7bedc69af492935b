"""Episodes: their types, sources, storage, splits, windows and inspection."""
