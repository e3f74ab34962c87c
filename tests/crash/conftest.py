from __future__ import annotations

from tests.control.conftest import postgres, postgres_url

__all__ = ["postgres", "postgres_url"]
