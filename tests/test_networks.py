import pytest
import torch
from torch import nn

from anogan.model import Architecture, load_model, save_model
from anogan.networks import Discriminator, Generator, check_architecture, freeze
from preprocessing.errors import InputError

PAPER = (512, 256, 128, 64)


def multiply_accumulates(network: nn.Module, run) -> float:
    """Count the multiply-accumulates of all convolutions in one call of `run`."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        kernel = module.weight[0, 0].numel()
        if isinstance(module, nn.ConvTranspose2d):  # every input pixel meets every weight
            total += inputs[0][0].numel() * module.out_channels * kernel
        else:
            total += output[0].numel() * module.in_channels * kernel

    hooks = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return total / 1e6


def test_the_paper_networks_do_the_published_work():
    generator, discriminator = Generator(PAPER, 100), Discriminator(PAPER)
    work = multiply_accumulates(generator, lambda: generator(torch.zeros(1, 100)))
    assert work == pytest.approx(159.7, abs=0.1)
    x = torch.zeros(1, 1, 64, 64)
    work = multiply_accumulates(discriminator, lambda: discriminator.features(x, 4))
    assert work == pytest.approx(158.9, abs=0.1)


def test_layer_shapes_of_the_paper():
    discriminator = Discriminator(PAPER)
    x = torch.zeros(2, 1, 64, 64)
    shapes = [tuple(discriminator.features(x, layer).shape[1:]) for layer in (1, 2, 3, 4)]
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert discriminator(x).shape == (2,)
    for conv in [*discriminator.down, *Generator(PAPER, 100).up]:
        assert (conv.kernel_size, conv.stride) == ((5, 5), (2, 2))


@pytest.mark.parametrize(("channels", "size"), [((8, 8, 8), 32), ((8,) * 4, 64), ((8,) * 5, 128)])
def test_patch_sizes(channels, size):
    patch = Generator(channels, 3)(torch.zeros(2, 3))
    assert patch.shape == (2, 1, size, size)
    assert Discriminator(channels)(patch).shape == (2,)
    with pytest.raises(ValueError, match=f"not {size + 1}"):
        check_architecture(channels, size + 1)


@pytest.fixture
def used_networks():
    """Small networks whose batch-norm statistics are not those of fresh ones."""
    torch.manual_seed(0)
    generator, discriminator = Generator((16, 8, 8), 5).train(), Discriminator((16, 8, 8)).train()
    for _ in range(3):
        discriminator(generator(torch.rand(16, 5) * 4 - 2) * 3)
    return generator.eval(), discriminator.eval()


def test_folding_batch_norm_changes_nothing(used_networks):
    generator, discriminator = used_networks
    z = torch.rand(4, 5) * 2 - 1
    with torch.no_grad():
        x = generator(z)
        logit, features = discriminator(x), discriminator.features(x, 2)
    freeze(generator, discriminator)
    torch.testing.assert_close(generator(z), x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(discriminator(x), logit, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(discriminator.features(x, 2), features, rtol=1e-4, atol=1e-5)
    modules = [*generator.modules(), *discriminator.modules()]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in modules)
    assert not any(p.requires_grad for m in (generator, discriminator) for p in m.parameters())


def test_a_model_survives_the_disk(used_networks, tmp_path):
    architecture = Architecture((16, 8, 8), 5, 32)
    save_model(tmp_path, architecture, *used_networks, {"seed": 1})
    loaded, generator, discriminator = load_model(tmp_path, torch.device("cpu"))
    assert loaded == architecture
    z = torch.rand(4, 5)
    x = used_networks[0](z)
    torch.testing.assert_close(generator(z), x)
    torch.testing.assert_close(discriminator(x), used_networks[1](x))


@pytest.mark.parametrize("damage", ["missing", "truncated", "other", "pickle"])
def test_a_damaged_model_is_refused_in_one_sentence(used_networks, tmp_path, damage):
    save_model(tmp_path, Architecture((16, 8, 8), 5, 32), *used_networks, {})
    weights = tmp_path / "generator.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "other":
        save_model(tmp_path, Architecture((16, 8, 8), 7, 32), *used_networks, {})
    else:
        torch.save({"a": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match="not a complete model"):
        load_model(tmp_path, torch.device("cpu"))
