"""Entry point of `python -m anogan`."""

import sys

from preprocessing.cli import run_command

COMMANDS = {
    "train": "Train a model on patches of healthy retina.",
    "score": "Score patches with a trained model.",
    "heatmap": "Map the scores of overlapping patches over whole volumes.",
    "heat_scale": "Choose the colours of heat maps from healthy volumes.",
    "overlay": "Lay heat maps on the scans as loaded.",
    "latent": "Embed the discriminator's features and walk through latent space.",
    "markers": "Group the most anomalous regions by what the discriminator sees in them.",
    "evaluate": "Compute ROC metrics with intervals from scores.",
    "report": "Write the figures and the report page.",
}

if __name__ == "__main__":
    sys.exit(run_command("anogan", COMMANDS))
