"""Attacks on a classifier's predictions, one module each."""
