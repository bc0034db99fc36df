"""Seeded generators of small worlds, and the demonstrators that teach a tiny model to live in them."""
