"""Entry point of `python -m anogan`."""

import sys

from preprocessing.cli import run_command

COMMANDS = {
    "train": "Train a model on patches of healthy retina.",
    "score": "Score patches with a trained model.",
    "evaluate": "Compute ROC metrics with intervals from scores.",
    "report": "Write the figures and the report page.",
}

if __name__ == "__main__":
    sys.exit(run_command("anogan", COMMANDS))
