"""Exercises: what readers and students see of an exercises notebook."""
