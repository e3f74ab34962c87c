"""A conversation as tokens, the same for training and serving: `tokenizer`, `chat_template`, `render`; the other
modules make it fast."""
