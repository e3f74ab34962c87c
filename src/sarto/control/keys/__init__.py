"""Customer keys: `kms` is the resource, `key_use` checks and uses a key, `key_upkeep` rotates and destroys."""
