"""What is bundled, as CycloneDX 1.5 in JSON: each library with its version, its licence, and the hash of its wheel.

Source: https://cyclonedx.org/docs/1.5/json/
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

_LEGACY = {"MIT License": "MIT", "Apache 2.0": "Apache-2.0", "BSD License": "BSD-3-Clause"}
_PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^ ]+) ", re.MULTILINE)


def pins(requirements: str) -> dict[str, str]:
    """Name to version, of a file of pinned requirements."""
    return {_normal(name): version for name, version in _PIN.findall(requirements)}


def document(version: str, requirements: str, wheels: Path) -> str:
    """The list, always the same for the same wheels.

    Raises:
        ValueError: a wheel is missing, or does not say its licence.
    """
    found = {_normal(wheel.name.split("-")[0]): wheel for wheel in wheels.glob("*.whl")}
    components = []
    for name, pinned in sorted(pins(requirements).items()):
        if name not in found:
            raise ValueError(f"{wheels}: expected a wheel of {name}, found none")
        components.append(_component(found[name], name, pinned))
    made = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "punchd", "version": version}},
        "components": components,
    }
    return json.dumps(made, indent=2) + "\n"


def _component(wheel: Path, name: str, version: str) -> dict[str, Any]:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (one for one in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", one))
        metadata = Parser().parsestr(archive.read(path).decode())
    if metadata["Version"] != version:
        raise ValueError(f"{wheel.name}: expected version {version}, got {metadata['Version']}")
    return {
        "type": "library",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{version}",
        "licenses": [{"expression": _licence(metadata, wheel.name)}],
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}],
    }


def _licence(metadata: Any, wheel: str) -> str:
    if metadata["License-Expression"]:
        return str(metadata["License-Expression"])
    classifiers = [one.rpartition(" :: ")[2] for one in metadata.get_all("Classifier", []) if one.startswith("License")]
    for said in (metadata["License"], *classifiers):
        if said in _LEGACY:
            return _LEGACY[said]
        if said and re.fullmatch(r"[A-Za-z0-9.-]+", said):
            return str(said)
    raise ValueError(f"{wheel}: expected a licence, got {classifiers}")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
