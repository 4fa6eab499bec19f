"""Makes one stage use more memory than it says: that of the volume named in HUNGRY_VOLUME.

Every Python that finds this folder in PYTHONPATH runs this file as it starts.
"""

import os
import sys
import time

if sys.orig_argv[1:4] == ["-m", "preprocessing", "phantom"] and (
    os.environ["HUNGRY_VOLUME"] in sys.orig_argv
):
    memory = b"1" * (int(os.environ["HUNGRY_MB"]) * 2**20)
    time.sleep(4)  # Slurm looks once a second
    del memory
