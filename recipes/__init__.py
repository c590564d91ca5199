"""Recipes: whole experiments built on bitquant, run from a checkout."""
