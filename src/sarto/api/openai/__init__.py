"""OpenAI's API: chat, models, files and fine-tuning over the same buckets, jobs and endpoints."""
