import argparse
import json
import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from made_report import (
    HOSTILE,
    make_inputs,
    report,
    write_latent,
    write_markers,
    write_overlay,
    write_table,
)
from made_scores import LAYOUT, evaluation_of, make_scores

from anogan.page.inputs import read_evidence
from anogan.page.markers import read_markers
from anogan.page.quality import summarise
from anogan.page.render import Material, make_page
from anogan.report import add_arguments, read_material
from preprocessing.cli import run_command
from preprocessing.errors import InputError
from preprocessing.qc import skipped_row
from preprocessing.qc import write_table as write_qc
from preprocessing.skipped import Note

FIGURES = [
    *("calibration", "distributions", "gallery", "panel", "precision_recall"),
    *("roc_methods", "roc_scores", "strip", "training"),
]
LATENT_FIGURES = ["tsne", "walks"]
DRAWN = {*FIGURES, *LATENT_FIGURES}


def text_of(page: str) -> str:
    """What a reader sees of the page, without pictures, on one line."""
    page = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    text = unescape(re.sub(r"<[^>]+>", " ", page)).replace("\N{NO-BREAK SPACE}", " ")
    return " ".join(text.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[list[str], Path, str]:
    """Arguments, folder and page of a report that has everything, and hostile names in it."""
    folder = tmp_path_factory.mktemp("report")
    splits = (("validation", 2, 2), ("test", 6, 6), ("score", 2, 2))
    scores = make_scores(splits=splits)
    scores.loc[scores["volume"] == "score_03", "volume"] = HOSTILE
    arguments = make_inputs(folder, scores, methods=tuple(LAYOUT))
    evidence = evaluation_of(folder)
    evidence["warnings"].append(HOSTILE)
    (folder / "metrics.json").write_text(json.dumps(evidence))
    overlays = [
        write_overlay(folder / "overlays" / "0", HOSTILE, "score", -1),
        write_overlay(folder / "overlays" / "1", "test_07", "test", 1),
        write_overlay(folder / "overlays" / "2", "test_09", "test", 1),
        write_overlay(folder / "overlays" / "3", "test_01", "test", 0),
    ]
    arguments += ["--overlays", *overlays, "--latent", write_latent(folder / "gan.h5")]
    page = report(arguments, folder / "report" / "index.html", draw=False)
    return arguments, folder, page


@pytest.fixture(scope="module")
def material(made) -> Material:
    """What the page of `made` is made of; its figures are drawn already."""
    arguments, folder, _ = made
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    page = folder / "report" / "index.html"
    return read_material(parser.parse_args([*arguments, "--output", str(page)]))


def test_page_holds_everything_it_shows(made):
    _, _, page = made
    assert not re.search(r"https?://", page)
    sources = re.findall(r"""(?<![-\w])(?:src|href)\s*=\s*["']([^"']*)""", page)
    pictures = [source for source in sources if source.startswith("data:image/")]
    places = {source[1:] for source in sources if source.startswith("#")}
    assert len(pictures) + sum(source.startswith("#") for source in sources) == len(sources)
    assert len(pictures) == len(FIGURES) + len(LATENT_FIGURES) + 4  # samples, real, QC pictures
    assert places == set(re.findall(r'<section id="(\w+)"', page)) - {"summary"}
    assert not re.search(r"@import|url\(|<link|<iframe", page)


def test_only_the_script_of_the_page_may_run(made):
    _, _, page = made
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert [kind for kind, _ in scripts[:-1]] == [' type="application/json" data-viewer-volume'] * 4
    digest = b64encode(sha256(scripts[-1][1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}';" in policy
    assert not re.search(r"\beval\(|innerHTML|\son\w+=", page)


def test_text_from_the_data_is_escaped(made):
    _, _, page = made
    assert HOSTILE not in page
    shown = unescape(re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL))
    assert shown.count(HOSTILE) == 7  # warning, entry, list, its title, 2 QC reasons, config
    packed = re.findall(r"data-viewer-volume>(.*?)</script>", page, re.DOTALL)
    assert json.loads(packed[0])["volume"] == HOSTILE


def test_volumes_that_were_skipped_are_listed_and_not_looked_for(made, tmp_path):
    arguments, folder, _ = made
    write_qc([skipped_row(Note("odd", f"odd.nii.gz: {HOSTILE}"))], tmp_path / "qc.tsv")
    tables = ["--qc", f"{tmp_path}/qc.tsv", f"{folder}/qc.tsv", "--splits", "test", "test"]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    page = ["--overlays", f"{tmp_path}/odd", "--output", f"{folder}/report/index.html"]
    material = read_material(parser.parse_args([*arguments, *tables, *page]))
    assert material.qc == [f"{folder}/qc.tsv"]
    text = make_page(material, DRAWN, 25)
    assert "1 of 2 volumes could not be used</strong> and was skipped (1 test)" in text
    assert "odd.nii.gz: &lt;script&gt;" in text
    assert HOSTILE not in text
    material.skipped.write(tmp_path / "skipped.tsv")
    listed = (tmp_path / "skipped.tsv").read_text()
    assert listed == f"volume\tsplit\tcause\nodd\ttest\todd.nii.gz: {HOSTILE}\n"


def test_all_figures_are_written_as_svg_and_png(made):
    _, folder, _ = made
    written = sorted(path.name for path in (folder / "report" / "figures").iterdir())
    expected = [f"{name}.{kind}" for name in FIGURES + LATENT_FIGURES for kind in ("svg", "png")]
    assert written == sorted(expected)


def test_second_run_gives_the_same_bytes(made, material):
    _, _, page = made
    assert make_page(material, DRAWN, 25) == page


def test_page_states_the_result_beside_the_paper(made):
    _, folder, page = made
    metrics = pd.read_csv(folder / "metrics.tsv", sep="\t")
    metrics = metrics.set_index(["method", "level", "subset", "metric"])
    auc = metrics.loc[("anogan", "patch", "test", "auc")]
    text = text_of(page)
    assert f"{auc['value']:.3f} {auc['ci_low']:.3f} to {auc['ci_high']:.3f}" in text
    between = f"95 % interval {auc['ci_low']:.3f} to {auc['ci_high']:.3f}"
    assert f"AUC of {auc['value']:.3f} ({between})" in text
    assert f"{auc['value']:.3f} AUC of AnoGAN, A(x) over test patches {between}" in text
    found = metrics.loc[("anogan", "patch", "test", "sensitivity")]
    card = f"{found['value']:.0%} of the anomalous patches found 95% interval "
    card += f"{found['ci_low']:.0%} to {found['ci_high']:.0%}"
    assert card.replace("%", " %") in text
    assert "AnoGAN, A(x) paper (other data) 0.8834 0.7277 0.7279 0.8928 0.89" in text
    assert re.search(r"aCAE this run 0\.\d{3} .* aCAE paper \(other data\) 0\.7005", text)
    assert len(re.findall("paper \\(other data\\)", text)) == 2 * 4
    assert "PCA this run" in text
    assert "The test patches had no part in it" in text
    assert "synthetic phantom" not in text


def test_the_summary_says_by_how_much_a_baseline_is_better(made):
    _, folder, page = made
    differences = pd.read_csv(folder / "differences.tsv", sep="\t")
    row = differences.set_index(["method", "other", "level", "subset", "metric"]).loc[
        ("anogan", "pca", "patch", "test", "auc")
    ]
    text = text_of(page)
    said = f"A baseline does better: PCA by {-row['value']:.3f} of AUC (95 % interval "
    assert said + f"{-row['ci_high']:.3f} to {-row['ci_low']:.3f})" in text
    (warning,) = (w for w in evaluation_of(folder)["warnings"] if "is beaten by" in w)
    assert warning not in text  # it would say the same again


def test_the_latex_table_holds_the_paper_and_the_intervals(made):
    _, folder, _ = made
    table = (folder / "report" / "table.tex").read_text()
    assert table.count("{") == table.count("}")
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in rows} == {5}
    assert r"\textit{AnoGAN, $A(x)$, paper} & \textit{0.8834}" in table
    value = (
        pd.read_csv(folder / "metrics.tsv", sep="\t")
        .set_index(["method", "level", "subset", "metric"])
        .loc[("anogan", "patch", "test", "auc")]
    )
    assert f"{{\\footnotesize {value['ci_low']:.3f}--{value['ci_high']:.3f}}}" in table


def test_what_was_left_out_stands_with_its_reason(made, material):
    _, _, page = made
    text = text_of(page)
    assert "3 B-scans flagged “fail” gave no patches" in text
    assert "volumes 0 1 0 B-scans 1 1 3" in text  # pass, check, fail
    assert "3 of 5 1-2, 4: no retina found" in text
    every = make_page(replace(material, leave_out="check"), DRAWN, 25)
    assert "4 B-scans flagged “check” or “fail” gave no patches" in text_of(every)


def test_a_thousand_bad_bscans_make_a_short_list(tmp_path):
    flags = ["fail", "pass"] * 500
    tables = [write_table(tmp_path / f"{i}.tsv", f"v{i}", "fail", flags) for i in range(60)]
    tables.append(write_table(tmp_path / "good.tsv", "good", "pass", ["pass"]))
    found = summarise([str(table) for table in tables], "fail")
    assert found["counts"]["volumes"] == {"pass": 1, "check": 0, "fail": 60}
    assert found["n_left_out"] == 30000
    assert len(found["volumes"]) + found["more"] == 60
    assert len(str(found["volumes"])) < 20_000
    assert found["volumes"][0]["left_out"][0].endswith("16, 18 and 490 more: no retina found")


def test_unlabelled_volumes_are_listed_by_score_against_the_healthy_threshold(made):
    _, folder, page = made
    threshold = evaluation_of(folder)["specificity_points"]["volume"]["anogan"]["threshold"]
    volumes = pd.read_csv(folder / "volumes.tsv", sep="\t")
    unlabelled = volumes[volumes["split"] == "score"].sort_values("anogan", ascending=False)
    listed = page.partition("<caption>Volumes without a label")[2].partition("</table>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th>.*?<td>(yes|no)</td></tr>', listed)
    above = (unlabelled["anogan"] >= threshold).map({True: "yes", False: "no"})
    assert [verdict for _, verdict in rows] == above.tolist()
    assert f"({threshold:.4g}, from 2 volumes)" in text_of(page)
    names = [unescape(re.sub(r"<[^>]+>", "", name)) for name, _ in rows]
    assert names == unlabelled["volume"].tolist()


def test_phantom_without_validation_and_with_one_class_still_gives_a_page(tmp_path):
    scores = make_scores(splits=(("test", 4, 0),))
    arguments = make_inputs(tmp_path, scores, residuals=0, methods=("anogan", "pca"))
    text = text_of(report(arguments, tmp_path / "index.html", "--phantom", draw=False))
    assert "synthetic phantom" in text
    assert "only normal cases" in text
    assert "with one class alone no AUC can be given" in text
    assert "no labelled validation patches to choose a threshold on" in text
    assert "baseline" not in text
    assert len(list((tmp_path / "figures").iterdir())) == 2 * len(FIGURES)


def test_a_method_that_nobody_knows_stands_under_its_name(tmp_path):
    """Methods that did not run are not explained, but the paper's table holds their figures."""
    scores = make_scores().rename(columns={"ae": "my-own"})
    arguments = make_inputs(tmp_path, scores, methods=("my-own",))
    text = text_of(report(arguments, tmp_path / "index.html", draw=False))
    assert "AUC of my-own over test patches" in text
    assert "my-own : a method that this page does not know" in text
    assert "No baseline ran beside it" in text
    assert "A(x) weighs both" not in text
    assert "AnoGAN, A(x) paper (other data)" in text
    assert "AnoGAN, A(x) this run" not in text


def test_scored_volumes_without_any_label_give_a_page(tmp_path):
    scores = make_scores(splits=(("validation", 4, 0), ("score", 2, 3)))
    arguments = make_inputs(tmp_path, scores, methods=("anogan", "pca"))
    page = report(arguments, tmp_path / "index.html", draw=False)
    text = text_of(page)
    assert "9 volumes scored by AnoGAN" in text
    assert "of 5 volumes without a label above" in text
    assert "nothing could be measured" in text
    assert "Youden" not in text
    assert page.index('id="volumes"') < page.index('id="figures"')
    assert "Nothing was measured" in (tmp_path / "table.tex").read_text()
    assert len(list((tmp_path / "figures").iterdir())) == 2 * len(FIGURES)


def test_a_model_of_weights_alone_and_no_pictures_of_patches_still_give_a_page(tmp_path):
    arguments = make_inputs(tmp_path, make_scores(), residuals=0)
    for name in ("history.tsv", "samples.png", "real.png"):
        (tmp_path / "model" / name).unlink()
    text = text_of(report(arguments, tmp_path / "index.html", draw=False))
    assert "steps 1500" in text
    assert "The model came without pictures" in text


def test_a_small_budget_is_kept_and_said(made, material):
    _, _, page = made
    assert "this page leaves out" not in page
    missing = []
    for share in (0.7, 0.3, 0.16):
        limit = share * len(page.encode())
        page_made = make_page(material, DRAWN, limit / 1e6)
        assert len(page_made.encode()) <= limit
        missing += re.findall(r"this page leaves out (.*?)\. All of it is in", text_of(page_made))
    assert missing[0] == "the full resolution of B-scans (half their width and height is shown)"
    assert "of every 4 neighbouring B-scans all but the highest-scoring" in missing[1]
    assert missing[2].endswith("the B-scan viewer")
    assert 'id="viewer"' not in page_made


def test_a_budget_that_cannot_be_kept_ends_in_a_sentence(material):
    with pytest.raises(InputError, match=r"larger than --max-mb 0\.01 .* raise report: max_mb"):
        make_page(material, DRAWN, 0.01)


def test_metrics_of_other_scores_are_refused(made, tmp_path, capsys):
    arguments, folder, _ = made
    arguments = ["report", *arguments, "--scores", f"{folder}/pca.parquet"]
    assert (
        run_command("anogan", {"report": ""}, [*arguments, "--output", f"{tmp_path}/i.html"]) == 1
    )
    assert "metrics.tsv: not made from these score files" in capsys.readouterr().err


def test_metrics_of_another_kind_are_named(made, tmp_path):
    _, folder, _ = made
    for name in ("metrics.tsv", "volumes.tsv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for text in ("[]", "{}", "not JSON"):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(InputError, match=r"metrics\.json: .*with the rule evaluate"):
            read_evidence(tmp_path / "metrics.tsv")


def test_a_missing_file_is_named(made, tmp_path, capsys):
    arguments, folder, _ = made
    replaced = [part.replace("config.yaml", "absent.yaml") for part in arguments]
    arguments = ["report", *replaced, "--output", str(tmp_path / "index.html")]
    code = run_command("anogan", {"report": ""}, arguments)
    assert code == 1
    assert f"{folder}/absent.yaml: no such file" in capsys.readouterr().err


def test_clusters_of_regions_are_shown_with_what_was_measured(material, tmp_path):
    found = read_markers(write_markers(tmp_path / "markers"))
    page = make_page(replace(material, markers=found), DRAWN, 25)
    text = text_of(page)
    assert "2 clusters of 8 regions in 4 test and unlabelled volumes" in text
    assert "Darker than what surrounds them, in the outer half of the retina, about 220 µm" in text
    assert "no interval: no region in a healthy eye; fewer than 2 patients with" in text
    assert "regions per 10 mm of B-scan in diseased; healthy eyes 4.67; 0" in text
    assert "hypotheses to look at, no findings" in text
    assert "fitted on at most 100 regions of each volume" in text
    assert "not adjusted for how many are shown" in text
    assert "must match in device, protocol, image quality and age" in text
    assert page.count("Regions of cluster") == 2
    assert page.index('<h3 id="cluster-1"') < page.index('<h3 id="cluster-2"')
    small = make_page(replace(material, markers=found, packed=[]), DRAWN, 0.97 * len(page) / 1e6)
    assert "Regions of cluster" in small  # without the viewer it fits


def test_contact_sheets_of_clusters_are_left_out_before_the_last_volumes(material, tmp_path):
    found = read_markers(write_markers(tmp_path / "markers"))
    bare = replace(material, markers=found, packed=[], sheets={})
    whole = make_page(bare, DRAWN, 25)
    page = make_page(bare, DRAWN, (len(whole) - 1000) / 1e6)
    assert "Regions of cluster" not in page and "Cluster 2" in page
    assert "leaves out the contact sheets of clusters. All of it is in the results" in text_of(page)


def test_a_damaged_table_of_clusters_names_the_rule(tmp_path):
    folder = write_markers(tmp_path / "markers")
    table = tmp_path / "markers" / "clusters.tsv"
    table.write_text(table.read_text()[:-20])
    with pytest.raises(InputError, match="make it again with the rule markers"):
        read_markers(folder)


@pytest.mark.parametrize("text", ["{}", "[]", '{"method": "pca", "regions": 8, "volumes": 4}', "5"])
def test_a_description_of_markers_without_its_keys_names_the_rule(tmp_path, text):
    folder = write_markers(tmp_path / "markers")
    (tmp_path / "markers" / "markers.json").write_text(text)
    with pytest.raises(InputError, match=r"markers\.json: not a readable description of markers"):
        read_markers(folder)
