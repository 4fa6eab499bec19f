"""Scores, metrics and maps -> figures, a LaTeX table and one self-contained page about them."""

import argparse
from pathlib import Path

from anogan.evidence.score_tables import patch_table, read_scores
from anogan.figures.style import save_figure
from anogan.page.figures import model_figures, picture_figures, score_figures
from anogan.page.inputs import model_facts, read_evidence, read_history, read_text
from anogan.page.latex import latex_table
from anogan.page.markers import read_markers
from anogan.page.pictures import sheets_by_volume
from anogan.page.render import Material, make_page
from anogan.page.skipped import find_skipped
from anogan.page.viewer import read_packed
from preprocessing.errors import InputError
from preprocessing.files import write_text
from preprocessing.patches import LEAVE_OUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `python -m anogan report`."""
    parser.add_argument("--scores", nargs="+", required=True, help="score files of all methods")
    parser.add_argument(
        "--residuals",
        nargs="+",
        required=True,
        help="files *.residuals.h5 of the method that leads the report",
    )
    parser.add_argument(
        "--metrics", required=True, help="metrics.tsv, with what `evaluate` wrote beside it"
    )
    parser.add_argument("--model", required=True, help="folder of the model of that method")
    parser.add_argument("--qc", nargs="*", default=[], help="qc.tsv of the volumes")
    parser.add_argument(
        "--splits", nargs="*", default=[], help="of these volumes, in the order of --qc"
    )
    parser.add_argument(
        "--leave-out",
        choices=list(LEAVE_OUT),
        default="fail",
        help="which B-scans gave no patches, as told to the stage patches",
    )
    parser.add_argument(
        "--qc-pictures", nargs="*", default=[], help="VOLUME/layers.png and VOLUME/enface.png"
    )
    parser.add_argument("--overlays", nargs="*", default=[], help="folders of the stage overlay")
    parser.add_argument("--latent", help="what the stage latent made of the model, .h5")
    parser.add_argument("--markers", help="folder of the stage markers")
    parser.add_argument("--config", required=True, help="the resolved config")
    parser.add_argument("--phantom", action="store_true", help="say that the eyes are synthetic")
    parser.add_argument(
        "--max-mb",
        type=float,
        default=25,
        help="size of the page in megabytes; where it would be larger, pictures are left out",
    )
    parser.add_argument("--output", required=True, help="index.html to write")


def command(args: argparse.Namespace) -> str:
    """Draw the figures, write them and the table and a list of what was skipped, then the page."""
    output = Path(args.output)
    material = read_material(args)
    patches, methods, evidence = material.patches, material.methods, material.evidence
    drawn = {
        **score_figures(patches, methods, evidence),
        **picture_figures(args.residuals, patches, methods, evidence),
        **model_figures(material.history, args.latent),
    }
    for name, figure in drawn.items():
        save_figure(figure, material.figures, name)
    table = latex_table(evidence, list(methods), args.phantom)
    write_text(output.with_name("table.tex"), table)
    material.skipped.write(output.with_name("skipped.tsv"))
    page = make_page(material, set(drawn), args.max_mb)
    write_text(output, page)
    return f"{output}: {len(drawn)} figures, {len(page.encode()) / 1e6:.1f} MB"


def read_material(args: argparse.Namespace) -> Material:
    """Read what the page is made of; InputError where files do not fit each other."""
    model = Path(args.model)
    skipped = find_skipped(args.qc, args.splits)
    history = read_history(model)
    patches, methods = patch_table(read_scores(args.scores))
    evidence = read_evidence(Path(args.metrics))
    names = {name for own in methods.values() for name in own}
    if names != set(evidence.details["operating_points"]["patch"]):
        raise InputError(
            f"{args.metrics}: not made from these score files; run `evaluate` on them first"
        )
    left = {volume.volume for volume in skipped.volumes}
    volume_scores = dict(evidence.volumes[["volume", next(iter(methods))]].itertuples(index=False))
    return Material(
        patches=patches,
        methods=methods,
        evidence=evidence,
        model=model_facts(model, history),
        history=history,
        model_folder=model,
        figures=Path(args.output).parent / "figures",
        qc=skipped.tables,
        skipped=skipped,
        leave_out=args.leave_out,
        sheets={v: s for v, s in sheets_by_volume(args.qc_pictures).items() if v not in left},
        packed=[
            read_packed(folder, volume_scores)
            for folder in args.overlays
            if Path(folder).name not in left
        ],
        markers=read_markers(args.markers) if args.markers else None,
        config=read_text(Path(args.config)),
        phantom=args.phantom,
    )
