"""Weights in another stored form: which ones, coded how, and the nodes that give them back."""
