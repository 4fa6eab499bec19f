"""Entry point of `python -m preprocessing`."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices: further threads would only wait

from preprocessing.cli import run_command

COMMANDS = {
    "phantom": "Make one phantom OCT volume with known layers and lesions.",
    "load": "Read a volume in a vendor's format and write it in canonical form.",
    "normalise": "Scale gray values to [-1, 1] by robust percentiles of the retina.",
    "resample": "Resample x to one lateral spacing for every eye.",
    "segment": "Find ILM, RPE and Bruch's membrane.",
    "qc": "Judge a volume and its B-scans: pass, check or fail, with the reason.",
    "qc_pictures": "Draw the layers of a volume and its en-face maps, for a person to look at.",
    "flatten": "Flatten the retina to Bruch's membrane.",
    "prepare": "Do all from normalise to flatten, and qc, in one go.",
    "patches": "Cut random patches from flattened volumes into one HDF5 file.",
    "own_patches": "Make a patch file of patches that were cut elsewhere.",
    "native": "Bring a map of the flat retina back to the native B-scans.",
}

if __name__ == "__main__":
    sys.exit(run_command("preprocessing", COMMANDS))
