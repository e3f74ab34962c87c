"""Keys and encrypted files: `key_service` is the interface, `envelope` encrypts files, `keyset_store` keeps keys."""
