"""From patches to a report: AnoGAN in PyTorch, its scores and its evidence."""
