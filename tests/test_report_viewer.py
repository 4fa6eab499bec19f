"""What the page's viewer is given, and what is left out of it where the page grows too large."""

import re
import zipfile
from pathlib import Path

import pytest
from made_report import write_overlay

from anogan.page.budget import STEPS, Detail, fit
from anogan.page.viewer import read_packed, thinned, viewer_json
from preprocessing.errors import InputError

DOCUMENTATION = Path(__file__).parents[1] / "docs" / "evidence.md"


def test_every_step_of_the_budget_leaves_out_more():
    said, sizes = [], iter([*range(10, 0, -1), 0.5])

    def render(detail: Detail) -> str:
        said.append(detail.left_out())
        return "x" * int(next(sizes) * 1e6)

    assert len(fit(render, 0.6)) == 500_000
    assert len(said) == 1 + len(STEPS)
    assert said[0] == []
    assert said[1] == ["the contact sheets of volumes that passed quality control"]
    assert len({str(one) for one in said}) == len(said)
    assert said[-1] == ["all contact sheets", "the contact sheets of clusters", "the B-scan viewer"]


def test_the_documentation_lists_the_steps_of_the_budget():
    section = DOCUMENTATION.read_text(encoding="utf-8").partition("## The page")[2]
    listed = re.findall(r"^\d+\. (.*)$", section, re.MULTILINE)
    assert listed == [Detail(**changes).left_out()[0] for changes in STEPS]


def test_of_neighbouring_bscans_the_highest_score_stays():
    scores = [1.0, 5.0, None, None, 3.0, 2.0, 9.0]
    bscans = [{"max_score": score} for score in scores]
    assert thinned(bscans, 1) == list(range(7))
    assert thinned(bscans, 2) == [1, 2, 4, 6]
    assert thinned(bscans, 4) == [1, 6]


@pytest.mark.parametrize("damage", ["absent", "cut", "nothing", "list", "picture", "compressed"])
def test_a_damaged_viewer_file_is_named(tmp_path, damage):
    folder = Path(write_overlay(tmp_path / "v", "v", "test", 1))
    path = folder / "viewer.zip"
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "nothing":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("viewer.json", "{}")
    elif damage == "list":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("viewer.json", '"text"')
    elif damage == "compressed":  # a small file could fill the memory
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("more", bytes(10**6))
    else:
        with zipfile.ZipFile(path) as archive:
            description = archive.read("viewer.json")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("viewer.json", description)
    with pytest.raises(InputError, match=r"viewer\.zip: .*rule overlay"):
        viewer_json(read_packed(str(folder), {}), 1, False)
