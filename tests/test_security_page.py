"""No string of a file, a sheet or the config becomes an element, a script or a command."""

import json
import os
import re
import shutil
import sys
import types
import zipfile
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import pytest
from made_report import make_inputs, report, write_overlay, write_table
from made_scores import evaluate, evaluation_of, make_scores

from anogan.page.inputs import read_evidence
from anogan.page.latex import latex_table
from preprocessing.cli import run_command
from preprocessing.errors import InputError

OWN = "document.title='owned'"
HOSTILE = (
    f"<script>{OWN}</script><img src=x onerror=\"{OWN}\">' autofocus onfocus='{OWN}' "
    f'" onload="{OWN}"></script></option></textarea></title><!--<svg onload={OWN}>-->'
    "{{ 7 * 7 }}{% raw %}"
    f"javascript:{OWN};url(javascript:{OWN})&lt;b&gt;&quot;\u202edlo\u202c\u2066$x_{{$\\u003c%s%(a)s"
)
METHOD = f"<b onclick={OWN}>&\"'$x_{{"  # is part of a file's name, so without a slash
PLAIN = "plain"


def make_page(folder: Path, text: str, method: str) -> Path:
    """Make the report of inputs that say `text` wherever they can."""
    scores = make_scores(splits=(("validation", 2, 2), ("test", 4, 4), ("score", 1, 0)))
    volumes = {"score_00": text, "test_01": f"{text}1"}
    scores[method] = scores["pca"]
    methods = ("anogan", "pca", method)
    with mock.patch("made_report.evaluate"):  # HDF5 has room for proper names alone, so not yet
        folder.mkdir()
        arguments = make_inputs(folder, scores, methods=methods)
    scores = scores.assign(
        volume=scores["volume"].replace(volumes),
        patient="p " + text + scores["patient"],
    )
    evaluate(scores, folder, methods=methods)
    evidence = evaluation_of(folder)
    evidence["warnings"].append(text)
    (folder / "metrics.json").write_text(json.dumps(evidence) + "\n")
    model = json.loads((folder / "model" / "model.json").read_text())
    model["architecture"] = {text: text, "channels": [text, 1]}
    model |= {"seed": text, "data": {"n_patches": text, "n_volumes": text, "n_patients": [text]}}
    (folder / "model" / "model.json").write_text(json.dumps(model) + "\n")
    (folder / "config.yaml").write_text(f"data_dir: {text}\n{text}: 1\n")
    write_table(folder / "qc.tsv", f"{text}1", "check", ["pass", "fail", "check"])
    qc = (folder / "qc.tsv").read_text()
    (folder / "qc.tsv").write_text(qc.replace("no retina found", text))
    overlays = [
        describe(write_overlay(folder / "0", text, "score", -1), text),
        describe(write_overlay(folder / "1", f"{text}1", "test", 0), text),
    ]
    output = folder / "report" / "index.html"
    report([*arguments, "--overlays", *overlays], output, "--phantom", draw=False)
    return output


def describe(folder: str, text: str) -> str:
    """Let a volume's viewer.json say `text` wherever it may."""
    path = Path(folder) / "viewer.zip"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    facts = json.loads(members["viewer.json"])
    facts |= {"patient": text, "eye": text, "split": text, "method": text, text: text}
    facts["scale"][text] = [text, text]
    facts["bscans"][0]["layers"][text] = [[[text, text]]]
    facts["bscans"][0]["outlines"] = [[[text, text]]]
    members["viewer.json"] = (json.dumps(facts) + "\n").encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return folder


class Elements(HTMLParser):
    """Counts the elements of a page with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found = Counter()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found[tag, *(name for name, _ in attributes)] += 1
        for name, value in attributes:
            if name in ("href", "src", "action", "style"):
                self.found[name, re.split(r"[:;,#0-9]", value or "")[0]] += 1

    def handle_comment(self, data: str) -> None:
        self.found["comment"] += 1


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> tuple[Path, Path]:
    """The page of hostile inputs and its harmless twin."""
    folder = tmp_path_factory.mktemp("pages")
    return (
        make_page(folder / "hostile", HOSTILE, METHOD),
        make_page(folder / "plain", PLAIN, "other"),
    )


def test_the_page_has_the_elements_of_its_harmless_twin(pages):
    hostile, plain = (page.read_text(encoding="utf-8") for page in pages)
    assert Elements(hostile).found == Elements(plain).found
    assert hostile.count("<script") == plain.count("<script")
    assert hostile.count("</script") == plain.count("</script")
    assert "<!--" not in hostile
    shown = unescape(re.sub(r"<script\b.*?</script>", "", hostile, flags=re.DOTALL))
    assert shown.count(HOSTILE) >= 25  # as text, untouched
    policy = re.compile(r'Content-Security-Policy" content="[^"]*"')
    assert policy.findall(hostile) == policy.findall(plain)


def test_a_browser_finds_nothing_to_run(pages, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.add_argument("--headless=new")
    options.add_argument(f"--user-data-dir={tmp_path}")
    if os.geteuid() == 0:  # Chromium has no sandbox for root
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.chrome.service.Service(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        counts = []
        for page in pages:
            browser.get(page.as_uri())
            for link in browser.find_elements("css selector", "a[data-volume]"):
                browser.execute_script("arguments[0].click()", link)
            counts.append(
                browser.execute_script(
                    "const found = {};"
                    "for (const element of document.querySelectorAll('*')) {"
                    "  const name = [element.tagName, ...element.getAttributeNames()].join(' ');"
                    "  found[name] = (found[name] ?? 0) + 1; }"
                    "return found"
                )
            )
            assert "owned" not in browser.title
            assert "Content Security Policy" not in str(browser.get_log("browser"))
    assert counts[0] == counts[1]


def test_the_latex_table_holds_no_command_of_a_name(tmp_path):
    name = r"\input{x}%$&#_^~ \write18{ls}"
    scores = make_scores(splits=(("validation", 2, 2), ("test", 4, 4)))
    scores[name] = scores["pca"]
    make_inputs(tmp_path, scores, methods=("anogan", name))
    table = latex_table(read_evidence(tmp_path / "metrics.tsv"), ["anogan", name], False)
    row = next(line for line in table.splitlines() if "write18" in line)
    cell = row.split(" & ")[0]
    escapes = r"\\text(backslash|asciitilde|asciicircum)\{\}|\\[&%$#_{}]"
    assert re.sub(escapes, "", cell).strip() == "inputx write18ls"


@pytest.mark.parametrize(
    "text", ["\x1b]0;owned\x07", "\x1b[2J\x1b[31m", "a\rb", "\u202eb\u2066", "\x9b31m", "\udcff"]
)
@pytest.mark.parametrize("kind", [InputError, OSError, RuntimeError, None])
def test_no_message_steers_the_terminal(monkeypatch, capsys, text, kind):
    def command(args):
        if kind:
            raise kind(f"{text}: it is damaged\n{text}")
        return text

    stage = types.SimpleNamespace(add_arguments=lambda parser: None, command=command)
    monkeypatch.setitem(sys.modules, "preprocessing.made_up", stage)
    assert run_command("preprocessing", {"made_up": ""}, ["made_up"]) == (1 if kind else 0)
    printed = capsys.readouterr()
    line = (printed.out + printed.err).removesuffix("\n")
    assert line
    assert line.isprintable()
