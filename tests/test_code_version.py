"""The fingerprint of the code behind a rule."""

import shutil
from pathlib import Path

import pytest

from planning import code_version as versions

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the packages whose fingerprints are computed."""
    for package in versions.PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    monkeypatch.setattr(versions, "ROOT", tmp_path)

    def fingerprints():
        versions.code_version.cache_clear()
        versions._parse.cache_clear()
        versions.import_closure.cache_clear()
        stages = ("preprocessing.load", "preprocessing.flatten", "anogan.train", "anogan.score")
        return {stage: versions.code_version(stage) for stage in stages}

    return tmp_path, fingerprints


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("preprocessing/readers/heyex.py", {"preprocessing.load"}),
        ("preprocessing/flatten.py", {"preprocessing.flatten"}),
        ("anogan/mapping.py", {"anogan.score"}),
        ("anogan/losses.py", set()),
        ("anogan/networks.py", {"anogan.train", "anogan.score"}),
        (
            "preprocessing/errors.py",
            {"preprocessing.load", "preprocessing.flatten", "anogan.train", "anogan.score"},
        ),
    ],
)
def test_the_fingerprint_follows_the_imports(project, file, changed):
    folder, fingerprints = project
    before = fingerprints()
    (folder / file).write_text((folder / file).read_text() + "\nADDED = 1\n")
    after = fingerprints()
    assert {stage for stage in before if before[stage] != after[stage]} == changed


def test_comments_docstrings_and_the_version_number_do_not_count(project):
    folder, fingerprints = project
    before = fingerprints()
    for file, old, new in (
        ("preprocessing/flatten.py", '"""Stage', '"""The stage'),
        ("preprocessing/flatten.py", "import argparse", "# why\nimport argparse"),
        ("preprocessing/__init__.py", '__version__ = "', '__version__ = "9'),
    ):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))
    assert fingerprints() == before


def test_a_new_library_version_counts_but_not_its_patch_level(monkeypatch):
    versions.code_version.cache_clear()
    before = versions.code_version("anogan.train")
    real = versions.version

    def fake(bump):
        return lambda name: bump if name == "torch" else real(name)

    own = ".".join(real("torch").split(".")[:2])
    for bump, same in ((f"{own}.99", True), ("99.0", False)):
        monkeypatch.setattr(versions, "version", fake(bump))
        versions.code_version.cache_clear()
        assert (versions.code_version("anogan.train") == before) is same
    versions.code_version.cache_clear()


def test_optional_packages_count_and_may_be_absent(monkeypatch):
    def version(name):
        if name != installed:
            raise versions.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(versions, "version", version)
    seen = set()
    for installed in ("", "eyepy", "oct-converter", "pydicom"):  # noqa: B007, `version` reads it
        versions.code_version.cache_clear()
        seen.add(versions.code_version("preprocessing.load"))
    versions.code_version.cache_clear()
    assert len(seen) == 4


def test_preprocessing_never_needs_torch():
    for path in (ROOT / "preprocessing").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        imports = {i.split(".")[0] for i in versions._parse(name)[1]}
        assert not imports & {"torch", "anogan", "snakemake"}, name
