"""What is decided before any job runs: the config, the sample sheet, the version of the code."""
