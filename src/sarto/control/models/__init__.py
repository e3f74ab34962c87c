"""Tuned models, their endpoints and checkpoints, custom bases, and the resolution of model names."""
