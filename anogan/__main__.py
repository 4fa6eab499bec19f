"""Entry point of `python -m anogan`."""

import sys

from preprocessing.cli import run_command

COMMANDS = {
    "train": "Train the GAN on patches of healthy retina.",
    "map": "Map patches to the latent space and score them.",
    "evaluate": "Compute ROC metrics with intervals from scores.",
    "report": "Write the figures and the report page.",
}

if __name__ == "__main__":
    sys.exit(run_command("anogan", COMMANDS))
