"""A row of a dataset or a request as a conversation. `conversation` is the type; each other module reads one form."""
