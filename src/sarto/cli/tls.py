"""TLS of `sarto serve`: the choice of the certificate, and the refusal of plain HTTP from other machines unless a
setting allows it."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from sarto.errors import FailedPrecondition
from sarto.settings import Settings
from sarto.system.certificates import local_certificates

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY = ("0.0.0.0", "::")


@dataclass(frozen=True)
class TlsFiles:
    """PEM files; `authority` is the certificate that clients must trust, None for a publicly trusted one."""

    certificate: Path
    key: Path
    authority: Path | None = None

    def context(self) -> ssl.SSLContext:
        """For a client on this machine: trusts only this certificate, for any host name."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


def served_names(settings: Settings) -> tuple[str, ...]:
    """Host names for our own certificate: the loopback ones, the public ones, and, where other machines reach the
    service, the names of this machine."""
    others = [*settings.public_hosts, *settings.tls_names]
    if settings.host in ANY:
        others += [socket.gethostname(), socket.getfqdn()]
    elif settings.host not in LOOPBACK:
        others.append(settings.host)
    return tuple(dict.fromkeys((*LOOPBACK, *others)))


def choose(settings: Settings) -> TlsFiles | None:
    """The certificate of the server. None is plain HTTP, which only this machine may use unless a setting allows more.

    Raises FailedPrecondition for a certificate without its key, or an invalid one."""
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise FailedPrecondition("tls_certificate and tls_key belong together; set both, or neither.")
    if settings.tls_certificate and settings.tls_key:
        tls = TlsFiles(settings.tls_certificate, settings.tls_key)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)
        except (OSError, ssl.SSLError) as error:
            raise FailedPrecondition(
                f"tls_certificate {tls.certificate} with its key cannot be used: {error}"
            ) from None
        return tls
    if settings.tls == "local":
        certificates = local_certificates(settings.home / "tls", served_names(settings))
        return TlsFiles(certificates.certificate, certificates.key, certificates.authority)
    if not (_is_loopback(settings.host) or settings.plain_http_to_other_machines):
        raise FailedPrecondition(
            f"{settings.host} can be reached from other machines, and plain HTTP exposes tokens and data. Set"
            ' tls = "local" for a generated certificate (tls_names adds names to it), or tls_certificate and tls_key;'
            " behind a proxy that speaks TLS, set public_url to its address and plain_http_to_other_machines = true."
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
