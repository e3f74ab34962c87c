"""Commands about callers and their rights: accounts, keys, policies, projects, the audit log."""
