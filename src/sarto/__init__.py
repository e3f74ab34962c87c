"""Sarto: a self-hosted tuning service with the API of Vertex AI tuning. Start reading at `docs/tour.md`."""

__version__ = "0.1.0"
