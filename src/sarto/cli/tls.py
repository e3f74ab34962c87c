"""How `sarto serve` is reached: with which certificate, and never in plain HTTP from other machines by accident."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from sarto.certificates import local_certificates
from sarto.errors import FailedPrecondition
from sarto.settings import Settings

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Tls:
    """PEM files; `authority` is what clients are to trust, None for a certificate they trust already."""

    certificate: Path
    key: Path
    authority: Path | None = None

    def context(self) -> ssl.SSLContext:
        """For a client on this machine: trusts this certificate and no other, whatever name it is for."""
        made = ssl.create_default_context(cafile=str(self.certificate))
        made.check_hostname = False
        made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return made


def served_names(host: str) -> tuple[str, ...]:
    """What a certificate of our own is for: this machine, and the address listened on."""
    return LOOPBACK if host in (*LOOPBACK, *ANY) else (*LOOPBACK, host)


def choose(settings: Settings) -> Tls | None:
    """The certificate to serve with; None is plain HTTP, which only this machine may reach unless settings say so.

    Raises FailedPrecondition for a certificate without its key, or one that cannot be used.
    """
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise FailedPrecondition("tls_certificate and tls_key belong together; set both, or neither.")
    if settings.tls_certificate and settings.tls_key:
        tls = Tls(settings.tls_certificate, settings.tls_key)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)
        except (OSError, ssl.SSLError) as error:
            raise FailedPrecondition(
                f"tls_certificate {tls.certificate} with its key cannot be used: {error}"
            ) from None
        return tls
    if settings.tls == "local":
        made = local_certificates(settings.home / "tls", served_names(settings.host))
        return Tls(made.certificate, made.key, made.authority)
    if not (_is_loopback(settings.host) or settings.plain_http_to_other_machines):
        raise FailedPrecondition(
            f"{settings.host} can be reached from other machines, and plain HTTP shows them tokens and data. Set"
            " tls = local for a generated certificate, or tls_certificate and tls_key; behind a proxy that speaks TLS,"
            " set plain_http_to_other_machines = true."
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
