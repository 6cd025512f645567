"""Alembic's scripts; `remit migrate` runs them."""
