"""The profiles: Snakemake knows every key, the workflow every rule that they name."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from snakemake.cli import parse_args

ROOT = Path(__file__).parents[1]
PROFILES = sorted(path.parent for path in ROOT.glob("workflow/profiles/*/config.yaml"))
BY_RULE = ("set-resources", "set-threads", "groups")


def rules() -> set[str]:
    files = ROOT.glob("workflow/rules/*.smk")
    return {
        name for file in files for name in re.findall(r"^ *rule (\w+):", file.read_text(), re.M)
    }


def recipes() -> list[dict]:
    """The profiles, and what docs/cluster.md proposes to add to them."""
    texts = [(profile / "config.yaml").read_text() for profile in PROFILES]
    texts += re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/cluster.md").read_text(), re.M | re.S)
    return [yaml.safe_load(text) for text in texts]


def test_the_profiles_are_found():
    assert [profile.name for profile in PROFILES] == ["cluster-generic", "default", "slurm"]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.name)
def test_snakemake_knows_every_key(profile):
    _, args = parse_args(["--dry-run", "--workflow-profile", str(profile)])
    assert args.workflow_profile == str(profile)
    assert args.scheduler == "greedy"


def test_snakemake_refuses_a_key_that_it_does_not_know(tmp_path, capsys):
    shutil.copytree(ROOT / "workflow/profiles/slurm", tmp_path, dirs_exist_ok=True)
    with (tmp_path / "config.yaml").open("a") as file:
        file.write("slurm-nonsense: 1\n")
    with pytest.raises(SystemExit):
        parse_args(["--dry-run", "--workflow-profile", str(tmp_path)])
    assert "slurm-nonsense" in capsys.readouterr().err


def test_every_rule_that_is_named_exists():
    """Snakemake says nothing of a rule that does not."""
    named = {rule for recipe in recipes() for key in BY_RULE for rule in recipe.get(key, {})}
    assert named
    assert named <= rules()


def test_a_cluster_is_not_limited_to_the_gpus_of_one_machine():
    for profile in PROFILES:
        config = yaml.safe_load((profile / "config.yaml").read_text())
        assert ("gpu" in config.get("resources", {})) == (profile.name == "default")
