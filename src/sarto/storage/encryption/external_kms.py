"""Customer keys in an external key service, through Tink: HashiCorp Vault, Google Cloud KMS, AWS KMS.

Their clients are extras; a key whose extra is missing is refused by name. The context is bound inside the secret, since
not every service takes associated data. A slow service holds a call for `CALL_SECONDS`, and at most `MOST_CALLS` of
them. After that it gets no calls for a while, and its keys refuse at once.
"""

from __future__ import annotations

import hashlib
import hmac
import queue
import threading
import time
from collections.abc import Callable
from itertools import count
from urllib.parse import urlsplit

from tink import aead

from sarto.errors import FailedPrecondition, SartoError
from sarto.storage.encryption.envelope import KeyUnusable

DIGEST_BYTES = 32
CALL_SECONDS = 5.0
MOST_CALLS = 4
TURN_SECONDS = 1.0
"""Longest wait of a call for its turn, while the service responds."""
PAUSE_SECONDS = 10.0
"""Time without calls to a service that did not respond."""


def wrap(uri: str, secret: bytes, context: bytes, vault_token: str = "") -> bytes:
    """Raises KeyUnusable when the service refuses or is unreachable, FailedPrecondition without its client."""
    bound = hashlib.sha256(context).digest() + secret
    return _ask(uri, "encrypt", lambda: bytes(_primitive(uri, vault_token).encrypt(bound, b"")))


def unwrap(uri: str, wrapped: bytes, context: bytes, vault_token: str = "") -> bytes:
    """Raises FailedPrecondition as `wrap` does, and for a secret that belongs to another context."""
    plain = _ask(uri, "decrypt", lambda: bytes(_primitive(uri, vault_token).decrypt(wrapped, b"")))
    digest, secret = plain[:DIGEST_BYTES], plain[DIGEST_BYTES:]
    if not hmac.compare_digest(digest, hashlib.sha256(context).digest()):
        raise FailedPrecondition("The data key belongs to another file.")
    return secret


class _Service:
    """One key service. Its calls run in threads of their own; a caller stops waiting after a timeout."""

    def __init__(self) -> None:
        self._room = threading.BoundedSemaphore(MOST_CALLS)
        self._running: dict[int, float] = {}
        self._numbers = count()
        self._quiet_until = 0.0

    def call(self, work: Callable[[], bytes]) -> bytes:
        """Run `work` with a timeout. Raises TimeoutError, at once while the service is paused, and the errors of
        `work`."""
        now = time.monotonic()
        if now < self._quiet_until:
            raise TimeoutError("it gave no answer a moment ago")
        is_slow = any(now - began > TURN_SECONDS for began in list(self._running.values()))
        if not self._room.acquire(timeout=0 if is_slow else TURN_SECONDS):
            raise TimeoutError(f"{MOST_CALLS} calls wait for it already")
        answer: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(work, answer), name="external-key", daemon=True).start()
        try:
            outcome = answer.get(timeout=CALL_SECONDS)
        except queue.Empty:
            self._quiet_until = time.monotonic() + PAUSE_SECONDS
            raise TimeoutError(f"no answer within {CALL_SECONDS:g} seconds") from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _run(self, work: Callable[[], bytes], answer: queue.SimpleQueue[bytes | Exception]) -> None:
        number = next(self._numbers)
        self._running[number] = time.monotonic()
        try:
            answer.put(work())
        except Exception as error:
            answer.put(error)
        finally:
            del self._running[number]
            self._room.release()


_services: dict[tuple[str, str], _Service] = {}


def _ask(uri: str, act: str, work: Callable[[], bytes]) -> bytes:
    """Raises KeyUnusable for any failure of the service, FailedPrecondition as `_primitive` does."""
    parts = urlsplit(uri)
    service = _services.setdefault((parts.scheme, parts.netloc), _Service())
    try:
        return service.call(work)
    except SartoError:
        raise
    except Exception as error:  # each client has its own errors: of the network, of HTTP, of parsing
        raise KeyUnusable(f"The external key {uri} did not {act}: {error}") from None


def _primitive(uri: str, vault_token: str) -> aead.Aead:
    """The client for `hcvault://HOST/MOUNT/keys/NAME` (`hcvault+http` on the loopback), `gcp-kms://…` or
    `aws-kms://…`."""
    scheme = uri.partition("://")[0]
    try:
        if scheme in ("hcvault", "hcvault+http"):
            import hvac  # an extra
            from tink.integration import hcvault

            parts = urlsplit(uri)
            if scheme == "hcvault+http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
                raise FailedPrecondition(f"{uri}: only a Vault on this machine may be used without TLS.")
            address = f"{'http' if scheme == 'hcvault+http' else 'https'}://{parts.netloc}"
            seconds = 2 * CALL_SECONDS  # of silence; the caller has stopped waiting by then
            client = hvac.Client(url=address, token=vault_token, timeout=seconds, allow_redirects=False)
            return hcvault.new_aead(parts.path, client)
        if scheme == "gcp-kms":
            from tink.integration import gcpkms

            return gcpkms.GcpKmsClient(uri, "").get_aead(uri)
        if scheme == "aws-kms":
            from tink.integration import awskms

            return awskms.new_client(key_uri=uri).get_aead(uri)
    except ImportError:
        extra = {"gcp-kms": "gcpkms", "aws-kms": "awskms"}.get(scheme, "hcvault")
        raise FailedPrecondition(
            f"The external key {uri} needs a client that is not installed: `pip install 'sarto[{extra}]'`."
        ) from None
    raise FailedPrecondition(f"{uri} is not an external key: write hcvault://, gcp-kms:// or aws-kms://.")
