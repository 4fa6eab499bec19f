"""From patches to a report: AnoGAN (Schlegl et al. 2017) in PyTorch, its scores and its evidence."""
