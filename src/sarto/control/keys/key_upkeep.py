"""Periodic work on customer keys: destroys and rotates due keys, and removes decrypted files whose key refuses.

It has its own thread, so that load on other threads does not delay it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sarto.control.keys import kms
from sarto.storage.encryption.sealer import Sealer
from sarto.system.loop import Loop

TEND_SECONDS = 5.0


class KeyUpkeep:
    """Call `start` and `stop` once each. `on_closed` gets the digests of adapters that must be removed from all memory;
    it is called on this object's thread."""

    def __init__(self, sealer: Sealer, on_closed: Callable[[Sequence[str]], None]) -> None:
        self._sealer, self._on_closed = sealer, on_closed
        self._closed: list[str] = []
        """Digests that `on_closed` has not processed yet."""
        self._loop = Loop("keys", self._act, TEND_SECONDS)

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        """Returns at once: a call of a key service may hang, and all work here can be repeated."""
        self._loop.stop(0.0)

    def _act(self) -> None:
        kms.tend(self._sealer.keys)
        self._closed += self._sealer.opened.tend()
        if self._closed:
            self._on_closed(self._closed)
            self._closed = []
