"""A trained model on disk: weights as safetensors, everything else in `model.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from anogan.networks import Discriminator, Generator, check_architecture
from preprocessing.errors import InputError
from preprocessing.files import atomic_path, write_text


@dataclass
class Architecture:
    """What it takes to build the two networks."""

    channels: tuple[int, ...]
    latent: int
    patch_size: int

    def build(self) -> tuple[Generator, Discriminator]:
        """Return a generator and a discriminator with fresh weights; InputError if impossible."""
        try:
            check_architecture(self.channels, self.patch_size)
        except ValueError as error:
            raise InputError(f"model: channels: {error}") from error
        return Generator(self.channels, self.latent), Discriminator(self.channels)


def save_model(
    folder: Path,
    architecture: Architecture,
    generator: Generator,
    discriminator: Discriminator,
    facts: dict,
) -> None:
    """Write both networks and `model.json`, which comes last and holds `facts` as well."""
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        with atomic_path(folder / f"{name}.safetensors") as temporary:
            save_file(weights, temporary)
    description = {"architecture": asdict(architecture), **facts}
    write_text(folder / "model.json", json.dumps(description, indent=1) + "\n")


def load_model(
    folder: str | Path, device: torch.device
) -> tuple[Architecture, Generator, Discriminator]:
    """Return the architecture and both networks of a model folder, in eval mode.

    Raises InputError when a file is missing or damaged or the weights do not fit.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        fields = description["architecture"]
        architecture = Architecture(
            tuple(fields["channels"]), fields["latent"], fields["patch_size"]
        )
        networks = architecture.build()
        for name, network in zip(("generator", "discriminator"), networks, strict=True):
            network.load_state_dict(load_file(folder / f"{name}.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{folder}: not a complete model ({error}); train it again or copy all of its files"
        ) from error
    generator, discriminator = (network.to(device).eval() for network in networks)
    return architecture, generator, discriminator
