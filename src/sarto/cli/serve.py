"""`sarto serve`: the service on this machine. Prints its address and the key file; scripts wait for `HOME/address`."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import logging.handlers
import os
import secrets
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
import uvicorn

from sarto import settings as settings_
from sarto.assembly.app import build
from sarto.cli.tls import ANY, LOOPBACK, TlsFiles, choose, served_names
from sarto.control.access.account_store import RENEW
from sarto.errors import FailedPrecondition
from sarto.settings import Settings
from sarto.system.certificates import local_certificates
from sarto.system.files import write_whole

ADDRESS_FILE = "address"
GRPC_ADDRESS_FILE = "grpc_address"
logger = logging.getLogger(__name__)
GRACE_SECONDS = 1
STOP_SECONDS = 4.5
"""Time from the signal to the end of the process, also if a thread hangs; all acknowledged writes are on the disk."""
THREAD_TURN_SECONDS = 0.0005
"""Switch interval of threads. Handlers are short: Python's default of 5 ms would make the event loop wait longer than
they run."""
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
    os.umask(0o077)  # files of this process and its children are readable by their owner only
    _open_home(settings.home)
    tls = choose(settings)
    bridge = secrets.token_hex(16)
    with alone(settings.home), _listen(settings.host, settings.port) as listener:
        _log_to(settings.home / "logs" / "serve.log")
        address = _address(settings.host, listener.getsockname()[1], tls)
        try:
            with _grpc(settings, address, tls, bridge) as lines:
                _run(settings, listener, address, lines + _trust(tls), tls, bridge)
        except KeyboardInterrupt:
            pass
        finally:
            for name in (ADDRESS_FILE, GRPC_ADDRESS_FILE):
                (settings.home / name).unlink(missing_ok=True)
        print("Stopped. Everything is kept in", settings.home, flush=True)
    _leave()


def _leave() -> NoReturn:
    """End the process after everything is closed. The interpreter's own cleanup would take seconds with a large heap,
    while the deadline of `_Server` does not run."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _run(
    settings: Settings, listener: socket.socket, address: str, lines: str, tls: TlsFiles | None, bridge: str
) -> None:
    sys.setswitchinterval(THREAD_TURN_SECONDS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C once the server has shut down
    failures: list[BaseException] = []

    def announce(key_file: Path | None) -> None:
        write_whole(settings.home / ADDRESS_FILE, f"{address}\n".encode())
        print(_welcome(settings, settings.public_url or address, key_file, lines), flush=True)

    app = build(settings, address, announce, failures.append, bridge)
    config = uvicorn.Config(
        app,
        http=_protocol(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    try:
        _Server(config).run(sockets=[listener])
    except SystemExit:
        if not failures:
            raise
    if failures:  # which uvicorn itself would end without a word
        raise failures[0]


def _protocol(settings: Settings) -> Any:
    """httptools, which is faster than h11 and has our connection limits. It is not available on Windows."""
    if sys.platform == "win32":
        return "h11"
    from sarto.api.http.connections import BoundedProtocol, ConnectionLimit

    return partial(BoundedProtocol, limit=ConnectionLimit(settings.connections, settings.connections_per_address))


class _Server(uvicorn.Server):
    """Ends the process some seconds after the first signal, even if a thread does not return."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            timer = threading.Timer(STOP_SECONDS, _end_now)
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)


def _end_now() -> None:
    logger.warning("stopping took too long: the process ends as it is")
    os._exit(0)


@contextmanager
def _grpc(settings: Settings, address: str, tls: TlsFiles | None, bridge: str) -> Iterator[str]:
    """Run gRPC beside HTTP within the block, if it is enabled; yields lines with its address. Raises FailedPrecondition
    if the extra is not installed or the port cannot be opened."""
    if settings.grpc_port is None:
        yield ""
        return
    try:
        from sarto.api.http.grpc_bridge import GrpcServer, table
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"gRPC needs the extra sarto[grpc] ({error.name} is missing): pip install 'sarto[grpc]', or leave out"
            " --grpc-port and grpc_port."
        ) from None
    names = served_names(settings)
    certificates = local_certificates(settings.home / "tls", names)
    table()  # before the first call, which would wait for it
    try:
        trusted = tls.context() if tls else True
        server = GrpcServer(address, settings.host, settings.grpc_port, certificates, bridge, trusted)
    except RuntimeError as error:
        raise FailedPrecondition(
            f"Port {settings.grpc_port} of {settings.host} cannot be opened for gRPC: {error}"
        ) from None
    server.start()
    try:
        target = f"{'localhost' if settings.host in (*LOOPBACK, *ANY) else settings.host}:{server.port}"
        write_whole(settings.home / GRPC_ADDRESS_FILE, f"{target}\n".encode())
        yield f"\n  gRPC         {target}, with GRPC_DEFAULT_SSL_ROOTS_FILE_PATH={certificates.authority}"
    finally:
        server.stop()


def _trust(tls: TlsFiles | None) -> str:
    """Instructions for clients to trust a certificate of our own authority."""
    if tls is None or tls.authority is None:
        return ""
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE")
    authority = shlex.quote(str(tls.authority))
    return f"\n  clients      export {' '.join(f'{name}={authority}' for name in names)}"


def _welcome(settings: Settings, address: str, key_file: Path | None, lines: str) -> str:
    renew = f"{RENEW} --home {shlex.quote(str(settings.home))}"
    key = shlex.quote(str(key_file)) if key_file else "KEY_FILE"
    return f"""Sarto is ready at {address}
  home         {settings.home}
  credentials  {key_file or f"no key of an administrator here; `{renew}` makes one"}
  API          {address}/docs{lines}

In another terminal:
  export SARTO_URL={address} GOOGLE_APPLICATION_CREDENTIALS={key}
  sarto models list --base
  sarto tune --help
  curl -H "Authorization: Bearer $(sarto auth print-access-token)" \\
    {address}/v1/projects/{settings.project}/locations/us-central1/tuningJobs

Ctrl-C stops it."""


def _open_home(home: Path) -> None:
    """Raises FailedPrecondition when the home cannot be created or written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / "logs").mkdir(exist_ok=True)
        write_whole(home / ".writable", b"")
        (home / ".writable").unlink()
        for name in (ADDRESS_FILE, GRPC_ADDRESS_FILE):
            (home / name).unlink(missing_ok=True)
    except OSError as error:
        raise FailedPrecondition(
            f"The home {home} cannot be written ({error.strerror}); choose another with --home or SARTO_HOME."
        ) from None


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Lock the home for this process. Raises FailedPrecondition when another server holds it."""
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
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise FailedPrecondition(f"{host} is not an address to listen on: {error.strerror}") from None
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(2048)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                reason = "is in use; choose another with --port, or --port 0 for a free one"
            else:
                reason = f"cannot be listened on: {error.strerror}"
            raise FailedPrecondition(f"Port {port} of {host} {reason}.") from None
        yield listener


def _address(host: str, port: int, tls: TlsFiles | None) -> str:
    """The server's address for clients on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _is_no_stop(record: logging.LogRecord) -> bool:
    """Whether a log record is not about a response that was interrupted by the stop; one line logs their number."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class _LogFormatter(logging.Formatter):
    """A fixed phrase, then its facts."""

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = {k: v for k, v in record.__dict__.items() if k not in STANDARD_FIELDS}
        written = " ".join(f"{name}={value}" for name, value in facts.items())
        head, _, rest = super().format(record).partition("\n")
        return "\n".join(part for part in (f"{head} {written}".rstrip(), rest) if part)


def _log_to(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=10_000_000, backupCount=3)
    handler.setFormatter(_LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("uvicorn.error").addFilter(_is_no_stop)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("uvicorn.error", "httpx", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.WARNING)
