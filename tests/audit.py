"""Is what is installed exactly what constraints.txt lists, and is nothing of it known to be unsafe?

`make lint` runs this in the environment that it has made. Known vulnerabilities are asked of OSV
(https://google.github.io/osv.dev/api/); without a way to it, that part is said to be left out.
tests/audit-accepted.txt lists, with a reason, vulnerabilities that do not concern this project.
"""

import http.client
import json
import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SERVICE = "https://api.osv.dev/v1/querybatch"
TIMEOUT_S = 10
OWN = {"oct-anogan", "pip", "setuptools", "wheel"}  # the project, and what a new environment has


def pins(text: str) -> dict[str, str]:
    """Return the version of each package in a list of lines `name==version`."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}


def installed() -> dict[str, str]:
    """Return the version of each package in this environment, without a local part like +cpu."""
    found = {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions()}
    return {name: Version(version).public for name, version in found.items()}


def pinned_by_others() -> set[str]:
    """Return packages that another one fixes to one version, as PyTorch does with CUDA's."""
    requirements = [Requirement(r) for d in metadata.distributions() for r in d.requires or ()]
    fixed = [r for r in requirements if str(r.specifier).startswith("==")]
    return {canonicalize_name(r.name) for r in fixed}


def differences(listed: dict[str, str], here: dict[str, str], allowed: set[str]) -> list[str]:
    """Return in words what is listed but not installed so, or installed but not listed."""
    said = []
    for name, version in sorted(listed.items()):
        if name not in here:
            said.append(f"{name} {version} is listed but not installed")
        elif Version(here[name]) != Version(version):
            said.append(f"{name} {here[name]} is installed where {version} is listed")
    said += [
        f"{name} {version} is installed but not listed"
        for name, version in sorted(here.items())
        if name not in listed and name not in allowed
    ]
    return said


def vulnerabilities(listed: dict[str, str], service: str = SERVICE) -> dict[str, list[str]] | None:
    """Return ids of known vulnerabilities by package; None where the service gives no answer."""
    queries = [
        {"package": {"name": name, "ecosystem": "PyPI"}, "version": version}
        for name, version in listed.items()
    ]
    request = urllib.request.Request(
        service,
        json.dumps({"queries": queries}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            results = json.load(answer)["results"]
        found = [[entry["id"] for entry in result.get("vulns", ())] for result in results]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return None
    if len(found) != len(listed):
        return None
    return {name: ids for name, ids in zip(listed, found, strict=True) if ids}


def accepted(text: str) -> set[str]:
    """Return the ids in a list of lines `id reason`; ValueError where one has no reason."""
    lines = [line.split(maxsplit=1) for line in text.splitlines() if not line.startswith("#")]
    if any(len(line) == 1 for line in lines):
        raise ValueError("a vulnerability is accepted without a reason")
    return {line[0] for line in lines if line}


def main() -> int:
    """Print what is wrong; return 1 where anything is."""
    listed = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    wrong = differences(listed, installed(), OWN | pinned_by_others())
    check = [sys.executable, "-m", "pip", "check", "--disable-pip-version-check"]
    checked = subprocess.run(check, capture_output=True, text=True)
    if checked.returncode:
        wrong += checked.stdout.splitlines()
    found = vulnerabilities(listed)
    if found is None:
        print(f"audit: NOT asked for known vulnerabilities, {SERVICE} gave no answer")
    else:
        known = accepted((ROOT / "tests" / "audit-accepted.txt").read_text(encoding="utf-8"))
        for name, ids in found.items():
            wrong += [f"{name} {listed[name]} has {i}" for i in ids if i not in known]
        print(f"audit: {len(listed)} packages asked for known vulnerabilities")
    for line in wrong:
        print(f"audit: {line}")
    if not wrong:
        print("audit: the environment is what constraints.txt lists")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
