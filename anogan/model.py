"""A trained model on disk: weights as safetensors, everything else in `model.json`."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anogan.networks import NORMS, Discriminator, Encoder, Generator, check_architecture, freeze
from preprocessing.errors import InputError
from preprocessing.files import atomic_path, write_text

WEIGHTS = "weights.safetensors"
DESCRIPTION = "model.json"
DIGEST = "weights_sha256"


@dataclass
class TrainedModel:
    """A model as read from its folder: `description` is model.json, `weights` are named tensors."""

    folder: Path
    description: dict
    weights: dict[str, Tensor]

    @property
    def name(self) -> str:
        """What was trained, such as gan or pca."""
        return self.description["model"]

    @property
    def architecture(self) -> dict:
        """Sizes that the weights alone do not tell; always has `patch_size`."""
        return self.description["architecture"]

    @property
    def digest(self) -> str:
        """SHA-256 of the weights' file."""
        return self.description.get(DIGEST) or file_digest(self.folder / WEIGHTS)

    def fill(self, **networks: nn.Module) -> None:
        """Give each network the weights `name.*`; InputError when they do not fit.

        Networks made under `torch.device("meta")` take no memory before it is known that they fit.
        """
        for name, network in networks.items():
            prefix = f"{name}."
            own = {
                k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)
            }
            try:
                network.load_state_dict(own, assign=True)
            except RuntimeError as error:
                raise InputError(
                    f"{self.folder}: the weights of the {name} do not fit model.json ({error}); "
                    "copy all files of the model again"
                ) from error


def weights_of(**networks: nn.Module) -> dict[str, Tensor]:
    """Return the weights of networks, each named `network.weight`."""
    return {
        f"{name}.{key}": value.detach()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


def save_tensors(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """Write named tensors and notes as one safetensors file, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata=notes)


def save_model(folder: Path, weights: dict[str, Tensor], description: dict) -> None:
    """Write the weights and `model.json`, which comes last and says which weights it describes."""
    save_tensors(folder / WEIGHTS, weights, {})
    description = {**description, DIGEST: file_digest(folder / WEIGHTS)}
    write_text(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")


def load_model(folder: str | Path, device: torch.device) -> TrainedModel:
    """Return the model of a folder; InputError when a file is missing or damaged."""
    folder = Path(folder)
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        name, architecture = description["model"], description["architecture"]
        settled = isinstance(name, str) and isinstance(architecture["patch_size"], int)
        if not settled or not isinstance(description.get("data", {}), dict):
            raise ValueError("model.json does not say what was trained")
        digest = description.get(DIGEST)  # models of earlier versions have none
        if digest and digest != file_digest(folder / WEIGHTS):
            raise ValueError(f"{WEIGHTS} is damaged or of another model")
        weights = load_file(folder / WEIGHTS, device=str(device))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(
            f"{folder}: not a complete model ({error}); copy all of its files again, or delete it "
            "and make it again with the rule train"
        ) from error
    return TrainedModel(folder, description, weights)


def check_preprocessing(path: str, size: int, found: dict, model: TrainedModel) -> None:
    """Raise InputError unless patches of `size` pixels are of the kind that the model has learned.

    `found` holds the settings of the stages before, by stage; what either side does not know is not
    compared.
    """
    learned_size = model.architecture["patch_size"]
    if size != learned_size:
        raise InputError(
            f"{path}: patches of {size} pixels, but {model.folder} was trained on {learned_size}; "
            "cut the patches again or use another model"
        )
    learned = model.description.get("data", {}).get("preprocessing", {})
    if not (found and learned):
        return
    for stage in sorted({*found, *learned}):
        here, there = found.get(stage, {}), learned.get(stage, {})
        for setting in sorted({*here, *there}):
            if here.get(setting) != there.get(setting):
                raise InputError(
                    f"{path}: preprocessed with {stage}: {setting} = {here.get(setting)}, but "
                    f"{model.folder} was trained on patches with {there.get(setting)}; set it as "
                    "for the model and preprocess again, or use another model"
                )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Architecture:
    """The sizes of every network: channels coarse to fine, length of z, pixels of a patch."""

    channels: tuple[int, ...]
    latent: int
    patch_size: int

    def __post_init__(self) -> None:
        if min(*self.channels, self.latent) < 1:
            raise InputError("model: channels and latent are numbers of 1 and more")
        try:
            check_architecture(self.channels, self.patch_size)
        except ValueError as error:
            raise InputError(f"model: channels: {error}") from error

    @classmethod
    def of(cls, model: TrainedModel) -> "Architecture":
        """Return the sizes that a model was trained with; InputError when they are missing."""
        try:
            found = model.architecture
            sizes = (*found["channels"], found["latent"], found["patch_size"])
            if not all(isinstance(size, int) and size > 0 for size in sizes):
                raise ValueError("sizes are whole numbers above 0")
            return cls(tuple(found["channels"]), found["latent"], found["patch_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{model.folder / DESCRIPTION}: no architecture ({error}); copy the file again"
            ) from error


def load_gan(model: TrainedModel) -> tuple[Generator, Discriminator]:
    """Return the trained generator and discriminator of a model "gan"."""
    size, norm = Architecture.of(model), model.architecture.get("norm")
    if norm not in NORMS:
        raise InputError(
            f"{model.folder / DESCRIPTION}: the discriminator's norm is {norm}, none of "
            f"{', '.join(NORMS)}; copy the file again"
        )
    with torch.device("meta"):
        generator = Generator(size.channels, size.latent)
        discriminator = Discriminator(size.channels, norm)
    model.fill(generator=generator, discriminator=discriminator)
    return generator, discriminator


def read_frozen_gan(folder: str | Path) -> tuple[TrainedModel, Generator, Discriminator]:
    """Return the model "gan" of a folder and its networks, frozen, on the CPU; InputError."""
    model = load_model(folder, torch.device("cpu"))
    if model.name != "gan":
        raise InputError(f"{folder}: holds the model {model.name}; give the folder of a gan")
    generator, discriminator = load_gan(model)
    freeze(generator, discriminator)
    return model, generator, discriminator


def load_encoder(model: TrainedModel) -> Encoder:
    """Return the trained encoder of a model "encoder", which `load_gan` has the rest of."""
    size = Architecture.of(model)
    with torch.device("meta"):
        encoder = Encoder(size.channels, size.latent)
    model.fill(encoder=encoder)
    return encoder
