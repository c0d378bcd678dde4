"""Relation losses and the model that trains a student with them."""
