"""Sarto: a self-hosted tuning service that speaks the Vertex AI tuning API. Start reading at `docs/tour.md`."""

__version__ = "0.1.0"
