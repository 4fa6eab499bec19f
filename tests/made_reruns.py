"""What each change reruns, as Snakemake plans it: `python tests/made_reruns.py > tests/reruns.tsv`.

A run is made to look finished (empty files, their provenance recorded), then every key of the
config, every module and every library is changed in turn and the run planned again.
"""

import contextlib
import io
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import yaml
from made_project import ROOT, TINY, phantom
from snakemake.cli import main as snakemake
from snakemake.executors import touch

if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "workflow")]

from planning import code_version as versions
from planning.config import load_schema

ROWS = [phantom(split, split) for split in ("train", "validation", "test", "score")]
METHODS = ["r_anogan", "anogan", "f_anogan_refined", "f_anogan"]
METHODS += ["gan_r", "p_d", "acae", "ae", "pca"]
SETTINGS = {**TINY, "methods": METHODS}
# What is neither a setting of a stage nor to be tried with an arbitrary value: other tests do.
LEFT_OUT = {"volumes", "data_dir", "results_dir", "methods"}
LEFT_OUT |= {"existing_models", "existing_patches"}
ANOTHER = {  # where a rule finds none
    "normalise.percentiles": [2, 98],
    "model.channels": [8, 8, 4],
    "patches.size": 64,
    "gan.channels": [8, 8, 4],
    "acae.channels": [8, 8, 4],
    "ae.channels": [8, 8, 4],
    "map.feature_layer": "all",
    "heatmap.methods": ["anogan", "pca"],
    "heatmap.overlap": 0.5,
    "markers.method": "anogan",  # by name what it is by default
    "markers.clusters": 5,
}
ALONGSIDE = {"patches.size": {"model": {"channels": [8, 8, 8, 8], "latent": 4}}}
JOB = re.compile(r"^rule (?!all:)(\w+):\n((?:    .*\n)*)", re.MULTILINE)
WILDCARDS = re.compile(r"^    wildcards: (.*)$", re.MULTILINE)


class Plans:
    """A small run that looks finished, in `folder`, and what is planned after a change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        columns = ["volume", "patient", "path", "split", "label", "annotation"]
        sheet = ["\t".join(row) + "\n" for row in [columns, *ROWS]]
        (folder / "volumes.tsv").write_text("".join(sheet))
        self._configure({})
        self._all = jobs_in(self._snakemake("--dry-run"))
        table = [s.split("\t") for s in self._snakemake("--summary").splitlines() if "\t" in s]
        for output, *_ in table[1:]:
            path = folder / output
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir()
        with mock.patch.object(touch.Executor, "SLEEPING_TIME", 0):
            self._snakemake("--touch", "--forceall")

    def after(self, change: dict) -> str:
        """Return what a run with changed settings does; `change` is laid over `SETTINGS`."""
        self._configure(change)
        return self.now()

    def now(self) -> str:
        """Return the rules that a run would carry out, in a fixed order, "-" for none.

        Where not all jobs of a rule are carried out, it is followed by what sets them apart.
        """
        planned = jobs_in(self._snakemake("--dry-run"))
        words = []
        for rule, everything in self._all.items():
            jobs = planned.get(rule, [])
            parts = []
            for name in everything[0]:
                values, of_all = ({job[name] for job in some} for some in (jobs, everything))
                if jobs and values != of_all:
                    parts.append(",".join(sorted(values)))
            words += [rule + f"[{';'.join(parts)}]" * bool(parts)] * bool(jobs)
        return " ".join(words) or "-"

    def _configure(self, change: dict) -> None:
        settings = {**SETTINGS, "volumes": "volumes.tsv"}
        for key, value in change.items():
            old = settings.get(key)
            settings[key] = {**(old or {}), **value} if isinstance(value, dict) else value
        (self.folder / "my.yaml").write_text(yaml.safe_dump(settings))

    def _snakemake(self, *arguments: str) -> str:
        files = ["--snakefile", f"{ROOT}/workflow/Snakefile", "--configfile", "my.yaml"]
        said = io.StringIO()
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            try:
                snakemake([*files, "--cores", "1", *arguments])
            except SystemExit as end:
                if end.code:
                    raise RuntimeError(said.getvalue()) from None
        return said.getvalue()


def jobs_in(printed: str) -> dict[str, list[dict[str, str]]]:
    """Return the wildcards of every planned job, by rule."""
    jobs = defaultdict(list)
    for rule, details in JOB.findall(printed):
        wildcards = WILDCARDS.search(details)
        pairs = wildcards[1].split(", ") if wildcards else []
        jobs[rule].append(dict(pair.split("=") for pair in pairs))
    order = [rule for rule in DAG_ORDER if rule in jobs]
    assert set(order) == set(jobs), f"rules that DAG_ORDER lacks: {set(jobs) - set(order)}"
    return {rule: jobs[rule] for rule in order}


DAG_ORDER = [
    *("phantom", "load", "prepare", "qc_pictures", "patches", "train", "latent", "score"),
    *("heatmap", "heat_scale", "overlay", "evaluate", "markers", "report"),
]


def changed_settings() -> Iterator[tuple[str, dict]]:
    """Yield the dotted name of every key and a config that gives it another value."""
    for name, part in load_schema("config")["properties"].items():
        if name in LEFT_OUT:
            continue
        keys = part.get("properties")
        for key, schema in (keys or {"": part}).items():
            dotted = f"{name}.{key}" if keys else name
            current = SETTINGS.get(name, {}).get(key) if keys else SETTINGS.get(name)
            value = another(dotted, schema, current)
            yield dotted, {**ALONGSIDE.get(dotted, {}), name: {key: value} if keys else value}


def another(dotted: str, schema: dict, current: object) -> object:
    """Return a valid value of a key that is not the current one."""
    current = schema.get("default") if current is None else current
    if dotted in ANOTHER:
        return ANOTHER[dotted]
    if "enum" in schema:
        return next(value for value in schema["enum"] if value != current)
    if schema["type"] == "boolean":
        return not current
    if schema["type"] == "integer":
        return (current or 4) + 1
    return current * 0.9 if current else 0.5


def changed_modules() -> list[str]:
    """Return the names of all modules of the packages."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in versions.PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.stem != "__main__"
    ]


@contextlib.contextmanager
def edited(module: str) -> Iterator[None]:
    """Let the syntax tree of a module be another one."""
    parse = versions._parse

    def other(name: str) -> tuple:
        tree, imported = parse(name)
        return tree + " edited" * (name == module), imported

    with mock.patch.object(versions, "_parse", other):
        yield from fresh()


@contextlib.contextmanager
def renewed(library: str) -> Iterator[None]:
    """Let a library have another minor version."""
    minor = versions._minor_version

    def other(name: str) -> str:
        return minor(name) + ".new" * (name == library)

    with mock.patch.object(versions, "_minor_version", other):
        yield from fresh()


def fresh() -> Iterator[None]:
    """Forget the fingerprints, before and after."""
    versions.code_version.cache_clear()
    yield
    versions.code_version.cache_clear()


def libraries() -> list[str]:
    """Return the libraries that the packages import, without the standard library."""
    imported = {
        name.split(".")[0] for module in changed_modules() for name in versions._parse(module)[1]
    }
    return sorted(name for name in imported if versions._minor_version(name))


def fingerprints() -> tuple[str, ...]:
    """Return the fingerprint behind every rule, model and method, as the rules ask for them."""
    rules = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    stages = sorted(set(re.findall(r'code_version\("([\w.]+)"', rules)))
    methods = [name for name in changed_modules() if name.startswith("anogan.methods.")]
    return tuple(versions.code_version(name) for name in [*stages, *methods])


def reruns(folder: Path) -> dict[str, str]:
    """Return what every change reruns."""
    plans = Plans(folder)
    table = {"nothing": plans.after({})}
    table |= {f"config {name}": plans.after(change) for name, change in changed_settings()}
    plans.after({})
    before = fingerprints()
    known = {}  # what changes the same fingerprints reruns the same
    for kind, names, change in (
        ("module", changed_modules(), edited),
        ("library", libraries(), renewed),
    ):
        for name in names:
            with change(name):
                same = tuple(map(str.__eq__, before, fingerprints()))
                if same not in known:
                    known[same] = plans.now()
            table[f"{kind} {name}"] = known[same]
    return table


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for change, rules in reruns(Path(name)).items():
            print(change, rules, sep="\t")
