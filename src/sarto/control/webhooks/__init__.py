"""Webhooks: `subscriptions` stores them, `sender` delivers messages."""
