"""Views of tuning jobs: as experiments, read only, and as fine-tuning jobs of OpenAI's API."""
