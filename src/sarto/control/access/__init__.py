"""Authentication and authorisation: `principal`, `authentication`, then `authorization` with `roles` and `policies`."""
