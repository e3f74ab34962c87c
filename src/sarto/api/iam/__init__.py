"""Tokens, service accounts, policies and projects."""
