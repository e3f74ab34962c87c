"""OpenAI's chat API: `chat` has the routes, `messages` the two forms."""
