"""A local certificate authority and a server certificate signed by it, created once in a folder of the home.

For TLS without a certificate of the user. Clients must trust `ca.pem`.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sarto.system.files import write_whole

YEARS = 2


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files; keys are readable by their owner alone."""

    authority: Path
    certificate: Path
    key: Path


def local_certificates(folder: Path, hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")) -> Certificates:
    """The certificates in `folder`; new ones if they are missing, for other hosts, or expire within a month."""
    certificates = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    if not _is_good(certificates, hosts):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make(certificates, hosts)
    return certificates


def _is_good(certificates: Certificates, hosts: tuple[str, ...]) -> bool:
    if not (certificates.authority.exists() and certificates.certificate.exists() and certificates.key.exists()):
        return False
    certificate = x509.load_pem_x509_certificate(certificates.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)
    return set(_names(hosts)) <= set(names) and certificate.not_valid_after_utc > soon


def _names(hosts: tuple[str, ...]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _make(target: Certificates, hosts: tuple[str, ...]) -> None:
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=365 * YEARS)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sarto local authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])

    def base(name: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(public_key)
        return builder.serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(end)

    authority = (
        base(issuer, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    certificate = (
        base(subject, key.public_key())
        .add_extension(x509.SubjectAlternativeName(_names(hosts)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_whole(target.key, private, 0o600)
    write_whole(target.certificate, certificate.public_bytes(pem) + authority.public_bytes(pem), 0o644)
    write_whole(target.authority, authority.public_bytes(pem), 0o644)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
