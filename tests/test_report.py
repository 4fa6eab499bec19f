import json
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from made_scores import GAN_METHODS, LAYOUT, evaluate, make_scores
from PIL import Image

from anogan.figures import roc_figure, training_figure
from anogan.report_qc import summarise
from preprocessing.cli import run_command
from preprocessing.patch_file import INDEX_DTYPE

FIGURES = ["distributions", "panel", "roc_methods", "roc_scores", "training"]
HOSTILE = "<script>alert(1)</script>"


def textured(rng: np.random.Generator, n: int, size: int = 64) -> np.ndarray:
    """Bands of layers under speckle, (n, size, size) in [-1, 1]."""
    z = np.arange(size)[None, :, None]
    bands = 0.7 * np.sin(z / rng.uniform(4, 7, (n, 1, 1)) + rng.uniform(0, 6, (n, 1, 1))) - 0.1
    return np.clip(bands + rng.normal(0, 0.12, (n, size, size)), -1, 1)


def write_residuals(scores: pd.DataFrame, path: Path, count: int) -> None:
    """Keep the pictures of `count` patches of each label; the anomalous ones hold a lesion."""
    rng = np.random.default_rng(1)
    rows = scores[scores["split"] != "validation"]
    rows = pd.concat([rows[rows["label"] == value][:count] for value in (0, 1, -1)])
    generated = textured(rng, len(rows))
    patches = np.clip(generated + rng.normal(0, 0.08, generated.shape), -1, 1)
    masks = np.zeros(patches.shape, np.uint8)
    z, x = np.mgrid[:64, :64]
    for patch, mask, label in zip(patches, masks, rows["label"], strict=True):
        if label == 1:
            row, column = rng.integers(20, 44, 2)
            mask[:] = ((z - row) / 8) ** 2 + ((x - column) / 14) ** 2 < 1
            patch[mask == 1] = -0.9
    masks[:1] = 255  # nobody looked at the first
    masks[rows["label"] < 0] = 255
    index = np.zeros(len(rows), INDEX_DTYPE)
    for name in INDEX_DTYPE.names:
        index[name] = rows[name].to_numpy()
    with h5py.File(path, "w") as file:
        file["patches"] = patches.astype(np.float16)
        file["generated"] = generated.astype(np.float16)
        file["masks"] = masks
        file.create_dataset("index", data=index, dtype=INDEX_DTYPE)


def gan_history(rng: np.random.Generator) -> pd.DataFrame:
    step = np.arange(10, 1510, 10)
    assessed = step % 100 == 0
    return pd.DataFrame(
        {
            "step": step,
            "epoch": step * 64 / 24000,
            "d_loss": 0.9 + 0.4 * np.exp(-step / 200) + rng.normal(0, 0.06, 150),
            "g_loss": 1.4 - 0.5 * np.exp(-step / 300) + rng.normal(0, 0.1, 150),
            "d_real": 0.62 + rng.normal(0, 0.03, 150),
            "d_fake": 0.38 + rng.normal(0, 0.03, 150),
            "patches_per_s": 900.0,
            "peak_fraction": np.nan,
            "diversity": np.where(assessed, 1 - 0.6 * np.exp(-step / 400), np.nan),
            "kid": np.where(assessed, 5 * np.exp(-step / 300), np.nan),
        }
    )


def write_model(folder: Path) -> None:
    """Write what a trained GAN's folder holds beside the weights."""
    folder.mkdir()
    rng = np.random.default_rng(2)
    gan_history(rng).to_csv(folder / "history.tsv", sep="\t", index=False)
    grid = np.rint((np.hstack([np.vstack(textured(rng, 8)) for _ in range(8)]) + 1) * 127.5)
    for name in ("samples.png", "real.png"):
        Image.fromarray(grid.astype(np.uint8)).save(folder / name)
    description = {
        "model": "gan",
        "architecture": {"channels": [128, 64, 32, 16], "latent": 64, "patch_size": 64},
        "training": {"steps": 1500},
        "data": {"n_patches": 24000, "n_volumes": 12, "n_patients": 12},
        "seed": 1,
    }
    (folder / "model.json").write_text(json.dumps(description))


def make_inputs(
    folder: Path,
    scores: pd.DataFrame,
    residuals: int = 20,
    methods: tuple[str, ...] = GAN_METHODS,
) -> list[str]:
    """Write everything that `report` reads; return its arguments but the output."""
    evaluate(scores, folder, "--bootstrap", "200", methods=methods)
    write_residuals(scores, folder / "scores.residuals.h5", residuals)
    write_model(folder / "model")
    (folder / "config.yaml").write_text(f"seed: 1\nnote: '{HOSTILE}'\n")
    write_table(folder / "qc.tsv", "test_01", "check", ["pass", "fail", "fail", "check", "fail"])
    (folder / "v1").mkdir()
    speckle = np.random.default_rng(3).integers(0, 255, (300, 2100), dtype=np.uint8)
    for name in ("layers", "enface"):
        Image.fromarray(speckle).save(folder / "v1" / f"{name}.png")
    named = {
        "residuals": "scores.residuals.h5",
        "metrics": "metrics.tsv",
        "model": "model",
        "qc": "qc.tsv",
        "config": "config.yaml",
    }
    arguments = [part for name, file in named.items() for part in (f"--{name}", f"{folder}/{file}")]
    arguments += ["--scores", *(f"{folder}/{method}.parquet" for method in methods)]
    return [*arguments, "--qc-pictures", f"{folder}/v1/layers.png", f"{folder}/v1/enface.png"]


def write_table(path: Path, volume: str, verdict: str, flags: list[str]) -> Path:
    """Write a table as the stage qc does, with a hostile reason for every flag but "pass"."""
    rows = [("all", verdict), *enumerate(flags)]
    reasons = {"pass": "", "check": f"dim {HOSTILE}", "fail": "no retina found"}
    path.write_text(
        "volume\tbscan\tthickness_um\tflag\treason\n"
        + "".join(f"{volume}\t{b}\t290.0\t{flag}\t{reasons[flag]}\n" for b, flag in rows)
    )
    return path


def report(arguments: list[str], output: Path, *options: str) -> str:
    arguments = ["report", *arguments, "--output", str(output), *options]
    assert run_command("anogan", {"report": ""}, arguments) == 0
    return output.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader sees of the page, without pictures, on one line."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", page).replace("&nbsp;", " ").split())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[list[str], Path, str]:
    """Arguments, folder and page of a report with unlabelled volumes, one with a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    splits = (("validation", 2, 2), ("test", 6, 6), ("score", 2, 2))
    scores = make_scores(splits=splits)
    scores.loc[scores["volume"] == "score_03", "volume"] = HOSTILE
    arguments = make_inputs(folder, scores, methods=tuple(LAYOUT))
    return arguments, folder, report(arguments, folder / "report" / "index.html")


def test_page_holds_everything_it_shows(made):
    _, _, page = made
    assert not re.search(r"https?://", page)
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert len(sources) == 9
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"@import|url\(|<link|<script|<iframe", page)


def test_text_from_the_data_is_escaped(made):
    _, _, page = made
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4  # volume, 2 QC reasons, config


def test_all_figures_are_written_as_svg_and_png(made):
    _, folder, _ = made
    written = sorted(path.name for path in (folder / "report" / "figures").iterdir())
    assert written == sorted(f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png"))


def test_second_run_gives_the_same_bytes(made, tmp_path):
    arguments, folder, page = made
    assert report(arguments, tmp_path / "index.html") == page
    for path in (folder / "report" / "figures").iterdir():
        assert path.read_bytes() == (tmp_path / "figures" / path.name).read_bytes(), path.name


def test_page_states_the_result_beside_the_paper(made):
    _, folder, page = made
    metrics = pd.read_csv(folder / "metrics.tsv", sep="\t")
    metrics = metrics.set_index(["method", "level", "subset", "metric"])
    auc = metrics.loc[("anogan", "patch", "test", "auc")]
    text = text_of(page)
    interval = f"{auc['value']:.3f} {auc['ci_low']:.3f} to {auc['ci_high']:.3f}"
    assert interval in text
    assert "AnoGAN, A(x) paper (other data) 0.8834 0.7277 0.7279 0.8928 0.89" in text
    assert re.search(r"aCAE this run 0\.\d{3} .* aCAE paper \(other data\) 0\.7005", text)
    assert len(re.findall("paper \\(other data\\)", text)) == 2 * 4
    assert "PCA this run" in text
    assert "is beaten by a simple baseline: pca" in text
    assert "The test patches had no part in it" in text
    assert "synthetic phantom" not in text


def test_what_was_left_out_stands_with_its_reason(made, tmp_path):
    arguments, _, page = made
    text = text_of(page)
    assert "3 B-scans flagged “fail” gave no patches" in text
    assert "volumes 0 1 0 B-scans 1 1 3" in text  # pass, check, fail
    assert "3 of 5 1-2, 4: no retina found" in text
    every = text_of(report(arguments, tmp_path / "check.html", "--leave-out", "check"))
    assert "4 B-scans flagged “check” or “fail” gave no patches" in every
    nothing = text_of(report(arguments, tmp_path / "none.html", "--leave-out", "none"))
    assert "All B-scans were used" in nothing


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
    threshold = json.loads((folder / "evaluation.json").read_text())["healthy_volume_threshold"]
    volumes = pd.read_csv(folder / "volumes.tsv", sep="\t")
    unlabelled = volumes[volumes["split"] == "score"].sort_values("anogan", ascending=False)
    listed = page.partition("Volumes without a label")[2].partition("</table>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th>.*?<td>(yes|no)</td></tr>', listed)
    above = (unlabelled["anogan"] >= threshold["anogan"]).map({True: "yes", False: "no"})
    assert [verdict for _, verdict in rows] == above.tolist()
    assert [name.replace("&lt;", "<").replace("&gt;", ">") for name, _ in rows] == (
        unlabelled["volume"].tolist()
    )


def test_phantom_without_validation_and_with_one_class_still_gives_a_page(tmp_path):
    scores = make_scores(splits=(("test", 4, 0),))
    arguments = make_inputs(tmp_path, scores, residuals=0)
    text = text_of(report(arguments, tmp_path / "index.html", "--phantom"))
    assert "synthetic phantom" in text
    assert "only normal cases" in text
    assert "no labelled validation patches to choose a threshold on" in text
    assert len(list((tmp_path / "figures").iterdir())) == 2 * len(FIGURES)


def test_methods_that_did_not_run_are_not_explained(tmp_path):
    """The paper's table still holds what the paper found."""
    arguments = make_inputs(tmp_path, make_scores(), methods=("pca", "ae"))
    text = text_of(report(arguments, tmp_path / "index.html"))
    assert "A(x) weighs both" not in text
    assert "AUC of AE over test patches" in text
    assert "AnoGAN, A(x) paper (other data)" in text
    assert "AnoGAN, A(x) this run" not in text


def test_a_method_that_nobody_knows_stands_under_its_name(tmp_path):
    scores = make_scores().rename(columns={"ae": "my-own"})
    arguments = make_inputs(tmp_path, scores, methods=("my-own",))
    assert "AUC of my-own over test patches" in text_of(report(arguments, tmp_path / "index.html"))


def test_scored_volumes_without_any_label_give_a_page(tmp_path):
    scores = make_scores(splits=(("validation", 4, 0), ("score", 2, 3)))
    arguments = make_inputs(tmp_path, scores, methods=("anogan", "pca"))
    page = report(arguments, tmp_path / "index.html")
    text = text_of(page)
    assert "9 volumes scored by AnoGAN" in text
    assert "of 5 volumes without a label above" in text
    assert "nothing could be measured" in text
    assert "Youden" not in text
    assert page.count("<figure>") == 5  # panel, training, samples, real, QC pictures
    assert len(list((tmp_path / "figures").iterdir())) == 2 * len(FIGURES)


def test_a_model_of_weights_alone_and_no_pictures_of_patches_still_give_a_page(tmp_path):
    arguments = make_inputs(tmp_path, make_scores(), residuals=0)
    for name in ("history.tsv", "samples.png", "real.png"):
        (tmp_path / "model" / name).unlink()
    text = text_of(report(arguments, tmp_path / "index.html"))
    assert "steps 1500" in text
    assert "The model came without these pictures" in text
    assert len(list((tmp_path / "figures").iterdir())) == 2 * len(FIGURES)


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        (("step", "loss"), {"loss"}),
        (("step", "loss", "d_loss", "d_real", "d_fake"), {"loss", "mean output of D"}),
        (("patches", "explained_variance"), {"explained variance"}),
        (("step", "d_loss", "g_loss", "critic_real"), {"loss", "mean output of D"}),
    ],
)
def test_training_figure_draws_what_the_history_has(columns, labels):
    history = pd.DataFrame({name: np.linspace(1, 2, 30) for name in columns})
    history["kid"] = np.nan
    figure = training_figure(history)
    assert {axis.get_ylabel() for axis in figure.axes} == labels
    assert {axis.get_xlabel() for axis in figure.axes} == {columns[0]}


def test_curves_of_eight_methods_can_be_told_apart_without_colour(rng):
    label, names = rng.integers(0, 2, 200), [*LAYOUT, "one", "two"]
    scores = {name: rng.normal(size=200) for name in names}
    figure = roc_figure(label, scores, dict.fromkeys(names, ""), {}, "a")
    entries = [
        (line.get_linestyle(), line._dash_pattern, line.get_marker())
        for line in figure.legends[0].get_lines()
    ]
    assert len({str(entry) for entry in entries}) == len(names)


def test_metrics_of_other_scores_are_refused(made, tmp_path, capsys):
    arguments, folder, _ = made
    arguments = ["report", *arguments, "--scores", f"{folder}/pca.parquet"]
    assert (
        run_command("anogan", {"report": ""}, [*arguments, "--output", f"{tmp_path}/i.html"]) == 1
    )
    assert "metrics.tsv: not made from these score files" in capsys.readouterr().err


def test_a_missing_file_is_named(made, tmp_path, capsys):
    arguments, folder, _ = made
    replaced = [part.replace("config.yaml", "absent.yaml") for part in arguments]
    arguments = ["report", *replaced, "--output", str(tmp_path / "index.html")]
    code = run_command("anogan", {"report": ""}, arguments)
    assert code == 1
    assert f"{folder}/absent.yaml: no such file" in capsys.readouterr().err
