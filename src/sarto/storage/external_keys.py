"""Customer keys that live in an external key service, through Tink: HashiCorp Vault, Google Cloud KMS, AWS KMS.

Their clients are extras; a key whose extra is missing is refused by name. The context is bound inside the secret,
since not every service takes associated data.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

import tink
from tink import aead

from sarto.errors import FailedPrecondition
from sarto.storage.encryption import KeyUnusable

DIGEST_BYTES = 32


def wrap(uri: str, secret: bytes, context: bytes, vault_token: str = "") -> bytes:
    """Raises KeyUnusable when the service refuses or is not reached, FailedPrecondition without its client."""
    try:
        return bytes(_primitive(uri, vault_token).encrypt(hashlib.sha256(context).digest() + secret, b""))
    except tink.TinkError as error:
        raise KeyUnusable(f"The external key {uri} did not encrypt: {error}") from None


def unwrap(uri: str, wrapped: bytes, context: bytes, vault_token: str = "") -> bytes:
    """Raises FailedPrecondition as `wrap` does, and for a secret that belongs to another context."""
    try:
        plain = bytes(_primitive(uri, vault_token).decrypt(wrapped, b""))
    except tink.TinkError as error:
        raise KeyUnusable(f"The external key {uri} did not decrypt: {error}") from None
    digest, secret = plain[:DIGEST_BYTES], plain[DIGEST_BYTES:]
    if not hmac.compare_digest(digest, hashlib.sha256(context).digest()):
        raise FailedPrecondition("The data key belongs to another file.")
    return secret


def _primitive(uri: str, vault_token: str) -> aead.Aead:
    """`hcvault://HOST/MOUNT/keys/NAME` (`hcvault+http` on the loopback), `gcp-kms://…` or `aws-kms://…`."""
    scheme = uri.partition("://")[0]
    try:
        if scheme in ("hcvault", "hcvault+http"):
            import hvac  # an extra
            from tink.integration import hcvault

            parts = urlsplit(uri)
            if scheme == "hcvault+http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
                raise FailedPrecondition(f"{uri}: only a Vault on this machine may be spoken to without TLS.")
            address = f"{'http' if scheme == 'hcvault+http' else 'https'}://{parts.netloc}"
            client = hvac.Client(url=address, token=vault_token)
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
            f"The external key {uri} needs a client that is not installed: pip install 'sarto[{extra}]'"
        ) from None
    raise FailedPrecondition(f"{uri} is no external key: write hcvault://, gcp-kms:// or aws-kms://")
