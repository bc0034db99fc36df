"""Data on disk: loaders that validate, and generators that are seeded. Knows no model and no reward."""
