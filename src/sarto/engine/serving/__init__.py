"""Generation: `engine` (one thread owns the models) steps a `scheduler` per base, which passes rows to a `runner`'s
forward pass and logits to `sampling`. `request` parses requests, `generation` and `reply_parser` build responses."""
