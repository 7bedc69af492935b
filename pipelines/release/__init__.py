"""Packs trained weights into the package."""
