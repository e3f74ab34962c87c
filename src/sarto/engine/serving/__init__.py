"""Generation: `engine` (one thread owns the models) steps a `scheduler` per base, which feeds a `runner`'s forward pass
and hands logits to `sampling`; `request` reads what is asked, `generation` and `reply` shape what is answered."""
