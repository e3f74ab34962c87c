"""`sarto serve`: the service on this machine. Prints where it is and who may enter; scripts wait for `HOME/address`."""

from __future__ import annotations

import errno
import fcntl
import logging
import logging.handlers
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn

from sarto import settings as settings_
from sarto.app import build
from sarto.certificates import local_certificates
from sarto.cli.tls import LOOPBACK, Tls, choose, served_names
from sarto.errors import FailedPrecondition
from sarto.settings import Settings

ADDRESS_FILE = "address"
GRPC_ADDRESS_FILE = "grpc_address"
GRACE_SECONDS = 1
PROTOCOL = "h11" if sys.platform == "win32" else "sarto.api.upgrades:Protocol"
"""Of the two parsers the faster one, which Windows has not."""
THREAD_TURN_SECONDS = 0.0005
"""Handlers are short: with Python's turns of 5 ms they would keep the event loop waiting longer than they work."""
STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one; default 8080.", min=0, max=65535)] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of everything; default SARTO_HOME.", metavar="DIR")] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(help="Port of gRPC over TLS (extra sarto[grpc]); 0 takes a free one.", min=0, max=65535),
    ] = None,
) -> None:
    """Run the service until Ctrl-C."""
    settings = settings_.load(home, host=host, port=port, grpc_port=grpc_port)
    os.umask(0o077)  # whatever this process and its children write is its owner's alone
    _open_home(settings.home)
    tls = choose(settings)
    with alone(settings.home), _listen(settings.host, settings.port) as listener:
        _log_to(settings.home / "logs" / "serve.log")
        address = _address(settings.host, listener.getsockname()[1], tls)
        try:
            with _grpc(settings, address, tls) as lines:
                _run(settings, listener, address, lines + _trust(tls), tls)
        except KeyboardInterrupt:
            pass
        finally:
            for name in (ADDRESS_FILE, GRPC_ADDRESS_FILE):
                (settings.home / name).unlink(missing_ok=True)
        print("Stopped. Everything is kept in", settings.home, flush=True)


def _run(settings: Settings, listener: socket.socket, address: str, lines: str, tls: Tls | None) -> None:
    sys.setswitchinterval(THREAD_TURN_SECONDS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C once the server has shut down
    failures: list[BaseException] = []

    def announce(key_file: Path) -> None:
        _write_whole(settings.home / ADDRESS_FILE, f"{address}\n")
        print(_welcome(settings, address, key_file, lines), flush=True)

    app = build(settings, address, announce, failures.append)
    config = uvicorn.Config(
        app,
        http=PROTOCOL,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except SystemExit:
        if not failures:
            raise
    if failures:  # which uvicorn itself would end without a word
        raise failures[0]


@contextmanager
def _grpc(settings: Settings, address: str, tls: Tls | None) -> Iterator[str]:
    """gRPC beside HTTP while the block runs, if it is on; gives the lines that say where. Raises FailedPrecondition
    when the extra is not installed or the port cannot be had."""
    if settings.grpc_port is None:
        yield ""
        return
    try:
        from sarto.api.grpc_bridge import GrpcServer, table
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"gRPC needs the extra sarto[grpc] ({error.name} is missing): pip install 'sarto[grpc]', or leave out"
            " --grpc-port and grpc_port."
        ) from None
    names = served_names(settings.host)
    certificates = local_certificates(settings.home / "tls", names)
    table()  # before the first call, which would wait for it
    try:
        server = GrpcServer(address, settings.host, settings.grpc_port, certificates, tls.context() if tls else True)
    except RuntimeError as error:
        raise FailedPrecondition(
            f"Port {settings.grpc_port} of {settings.host} cannot be had for gRPC: {error}"
        ) from None
    server.start()
    try:
        place = f"{'localhost' if names == LOOPBACK else settings.host}:{server.port}"
        _write_whole(settings.home / GRPC_ADDRESS_FILE, f"{place}\n")
        yield f"\n  gRPC         {place}, with GRPC_DEFAULT_SSL_ROOTS_FILE_PATH={certificates.authority}"
    finally:
        server.stop()


def _trust(tls: Tls | None) -> str:
    """What clients must be told of a certificate that nobody knows."""
    if tls is None or tls.authority is None:
        return ""
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE")
    return f"\n  clients      export {' '.join(f'{name}={tls.authority}' for name in names)}"


def _welcome(settings: Settings, address: str, key_file: Path, lines: str) -> str:
    return f"""Sarto is ready at {address}
  home         {settings.home}
  credentials  {key_file}
  API          {address}/docs{lines}

In another terminal:
  export SARTO_URL={address} GOOGLE_APPLICATION_CREDENTIALS={key_file}
  sarto models list --base
  sarto tune --help
  curl -H "Authorization: Bearer $(sarto auth print-access-token)" \\
    {address}/v1/projects/{settings.project}/locations/us-central1/tuningJobs

Ctrl-C stops it."""


def _open_home(home: Path) -> None:
    """Raises FailedPrecondition when the home cannot be made or written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / "logs").mkdir(exist_ok=True)
        _write_whole(home / ".writable", "")
        (home / ".writable").unlink()
        for name in (ADDRESS_FILE, GRPC_ADDRESS_FILE):
            (home / name).unlink(missing_ok=True)
    except OSError as error:
        raise FailedPrecondition(
            f"The home {home} cannot be written ({error.strerror}); choose another with --home or SARTO_HOME."
        ) from None


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Holds the home for this process. Raises FailedPrecondition when another server has it."""
    with (home / "serve.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise FailedPrecondition(
                f"Another sarto serve (process {file.read().strip()}) uses the home {home}; stop it or give --home."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket. Raises FailedPrecondition when the port is taken or the address is not this machine's."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise FailedPrecondition(f"{host} is not an address to listen on: {error.strerror}") from None
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            listener.listen(2048)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                reason = "is in use; choose another with --port, or --port 0 for a free one"
            else:
                reason = f"cannot be listened on: {error.strerror}"
            raise FailedPrecondition(f"Port {port} of {host} {reason}.") from None
        yield listener


def _address(host: str, port: int, tls: Tls | None) -> str:
    """Where clients on this machine reach the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


class _Story(logging.Formatter):
    """A fixed phrase, then its facts."""

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = {k: v for k, v in record.__dict__.items() if k not in STANDARD_FIELDS}
        written = " ".join(f"{name}={value}" for name, value in facts.items())
        head, _, rest = super().format(record).partition("\n")
        return "\n".join(part for part in (f"{head} {written}".rstrip(), rest) if part)


def _log_to(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=10_000_000, backupCount=3)
    handler.setFormatter(_Story("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("uvicorn.error", "httpx", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.WARNING)
