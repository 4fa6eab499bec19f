import json

import h5py
import numpy as np
import pytest
import torch

from anogan.model import Architecture
from anogan.train import TrainingSettings, _shuffled_batches, gan_step, train
from preprocessing.cli import run_command
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter

SMALL = Architecture((16, 8, 8), 6, 32)


def stripes(n: int) -> np.ndarray:
    """Patches (n, 32, 32) with one bright band at a random height."""
    rng = np.random.default_rng(0)
    rows = np.arange(32)[None, :, None]
    band = np.abs(rows - rng.uniform(8, 24, (n, 1, 1))) < 4
    return np.where(np.broadcast_to(band, (n, 32, 32)), 0.8, -0.8).astype(np.float16)


def fit(seed=1, epochs=2.0):
    settings = TrainingSettings(epochs=epochs, batch_size=32, learning_rate=1e-3)
    return train(stripes(256), SMALL, settings, seed, torch.device("cpu"))


def test_training_repeats_exactly_and_depends_on_the_seed():
    first, again, other = fit()[0], fit()[0], fit(seed=2)[0]
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.project.weight, other.project.weight)


def test_the_generator_learns_what_the_patches_share():
    generator, _, history = fit(epochs=40)
    z = torch.rand(64, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        made = generator(z)[:, 0].numpy()
    assert made[:, [0, 1, 30, 31]].mean() < -0.6  # no band ever touches the border
    assert (made.max(axis=(1, 2)) > 0.4).mean() > 0.9  # and every patch has one
    assert history[-1]["step"] == 320
    assert history[-1]["epoch"] == pytest.approx(40)


def test_a_generator_step_leaves_the_discriminator_alone():
    """Each network moves by its own loss only; D gets no gradient from G's loss."""
    torch.manual_seed(0)
    generator, discriminator = SMALL.build()
    frozen = torch.optim.SGD(discriminator.parameters(), lr=0.0)
    moving = torch.optim.SGD(generator.parameters(), lr=0.1)
    real, z = torch.rand(8, 1, 32, 32), torch.rand(8, 6)
    d_before = [p.clone() for p in discriminator.parameters()]
    g_before = [p.clone() for p in generator.parameters()]
    d_gradients = None

    def remember(*_):
        nonlocal d_gradients
        d_gradients = [p.grad.clone() for p in discriminator.parameters()]

    frozen.register_step_post_hook(remember)
    gan_step(generator, discriminator, (moving, frozen), real, z)
    for p, before, grad in zip(discriminator.parameters(), d_before, d_gradients, strict=True):
        assert torch.equal(p, before)
        assert torch.equal(p.grad, grad)
        assert p.requires_grad
    assert any(not torch.equal(p, b) for p, b in zip(generator.parameters(), g_before, strict=True))


def test_every_patch_is_seen_once_per_epoch():
    batches = _shuffled_batches(10, 4, torch.Generator().manual_seed(0))
    seen = torch.cat([next(batches) for _ in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))


def write_patches(path, label=0):
    index = np.zeros(64, INDEX_DTYPE)
    index["volume"] = index["patient"] = b"a"
    index["label"][-1] = label
    gray = stripes(64)
    with PatchWriter(path, 32) as writer:
        writer.append(gray, np.full(gray.shape, 255, np.uint8), index)


def run(path, folder, *extra) -> int:
    arguments = [
        "--patches",
        path,
        "--channels",
        "8",
        "8",
        "8",
        "--latent",
        "4",
        "--epochs",
        "2",
        "--batch-size",
        "16",
        "--output",
        folder,
        *extra,
    ]
    return run_command("anogan", {"train": ""}, ["train", *map(str, arguments)])


def test_the_command_writes_a_model(tmp_path):
    write_patches(tmp_path / "p.h5")
    assert run(tmp_path / "p.h5", tmp_path / "model") == 0
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "discriminator.safetensors",
        "generator.safetensors",
        "history.tsv",
        "model.json",
        "real.png",
        "samples.png",
    ]


def test_the_model_remembers_how_its_patches_were_made(tmp_path):
    def with_parameters(*found):
        write_patches(tmp_path / "p.h5")
        with h5py.File(tmp_path / "p.h5", "a") as file:
            for i, parameters in enumerate(found):
                file.create_group(f"geometry/v{i}").attrs["parameters"] = json.dumps(parameters)
        return run(tmp_path / "p.h5", tmp_path / "model")

    black = [{"normalise": {"percentiles": [1, 99], "black": b}} for b in (0.1, 0.2)]
    assert with_parameters(*black) == 0
    model = json.loads((tmp_path / "model/model.json").read_text())
    assert model["data"]["preprocessing"] == {"normalise": {"percentiles": [1, 99]}}
    assert with_parameters(black[0], {"resample": {"x_um": 30}}) == 1


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("anomalous", "train on healthy eyes"),
        ("channels", "not 32"),
        ("gpu", "PyTorch sees none"),
        ("missing", "no such file"),
    ],
)
def test_faults_end_in_one_line(tmp_path, capsys, case, message):
    if case == "gpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    write_patches(tmp_path / "p.h5", label=1 if case == "anomalous" else 0)
    extra = {"channels": ["--channels", 8, 8, 8, 8], "gpu": ["--gpus", 1]}.get(case, [])
    path = tmp_path / ("absent.h5" if case == "missing" else "p.h5")
    assert run(path, tmp_path / "model", *extra) == 1
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1]
    assert not (tmp_path / "model").exists()
