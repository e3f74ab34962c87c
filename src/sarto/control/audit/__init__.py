"""The audit log: entries, their chain, and the limit on refusals."""
