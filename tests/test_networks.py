import pytest
import torch
from torch import nn

from anogan import convolutions
from anogan.convolutions import Convolution, Projection, TransposedConvolution
from anogan.model import Architecture, load_gan, load_model, save_model, weights_of
from anogan.networks import (
    NORMS,
    Discriminator,
    Encoder,
    Generator,
    check_architecture,
    freeze,
)
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


def test_all_features_are_those_of_every_layer():
    discriminator, x = Discriminator((16, 8, 8)).eval(), torch.rand(2, 1, 32, 32)
    for i, features in enumerate(discriminator.all_features(x, 3), 1):
        assert torch.equal(features, discriminator.features(x, i))
    assert torch.equal(discriminator.judge(features), discriminator(x))


@pytest.mark.parametrize("norm", NORMS)
def test_only_batch_norm_lets_patches_meet(norm):
    """A gradient penalty is of each patch by itself, so its norm must be too."""
    torch.manual_seed(0)
    discriminator, x = Discriminator((16, 8, 8), norm).train(), torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        together, apart = discriminator(x), torch.cat([discriminator(one[None]) for one in x])
    assert torch.allclose(together, apart, atol=1e-5) == (norm != "batch")


def used_networks(norm="batch") -> dict[str, nn.Module]:
    """Small networks whose batch-norm statistics are not those of fresh ones."""
    torch.manual_seed(0)
    generator, discriminator = Generator((16, 8, 8), 5), Discriminator((16, 8, 8), norm)
    with torch.no_grad():
        for _ in range(3):
            discriminator(generator(torch.rand(16, 5) * 4 - 2) * 3)
    return {"generator": generator.eval(), "discriminator": discriminator.eval()}


@pytest.mark.parametrize("norm", NORMS)
def test_freezing_changes_nothing_but_the_work(norm):
    generator, discriminator = used_networks(norm).values()
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


def test_freezing_the_encoder_changes_nothing():
    torch.manual_seed(0)
    encoder, x = Encoder((16, 8, 8), 5), torch.rand(8, 1, 32, 32)
    with torch.no_grad():
        encoder(x)
        z = encoder.eval()(x)
    freeze(encoder)
    assert z.shape == (8, 5)
    torch.testing.assert_close(encoder(x), z, rtol=1e-4, atol=1e-5)


def test_frozen_networks_in_bf16_are_nearly_the_same():
    generator, discriminator = used_networks().values()
    freeze(generator, discriminator)
    z = torch.rand(4, 5) * 2 - 1
    x = generator(z)
    logit = discriminator(x)
    generator.to(torch.bfloat16)
    discriminator.to(torch.bfloat16)
    made = generator(z.to(torch.bfloat16))
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), x, rtol=0, atol=0.02)
    torch.testing.assert_close(discriminator(made).float(), logit, rtol=0.05, atol=0.02)


LAYERS = {  # layer of the paper's networks, shape of its input
    "convolution": (lambda: Convolution(256, 512, bias=True), (3, 256, 8, 8)),
    "transposed": (lambda: TransposedConvolution(512, 256, bias=True), (3, 512, 4, 4)),
    "of a small network": (lambda: Convolution(8, 16, bias=False), (5, 8, 6, 10)),
    "transposed, small": (lambda: TransposedConvolution(8, 1, bias=False), (5, 8, 3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_product_is_the_convolution_that_it_stands_for(name, monkeypatch):
    """Values, slopes for input and weights, and slopes of slopes, as a gradient penalty needs."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().to(memory_format=torch.channels_last)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    found = {}
    for kind, weights_per_position in (("convolution", float("inf")), ("product", 0)):
        monkeypatch.setattr(convolutions, "WEIGHTS_PER_POSITION", weights_per_position)
        y = layer(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        penalty = slope.square().mean()
        second = torch.autograd.grad(penalty, [x, layer.weight], retain_graph=True)
        first = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        found[kind] = [y, *first, *second]
    for a, b in zip(found["product"], found["convolution"], strict=True):
        scale = float(b.detach().abs().max())
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * scale)


def test_the_paper_has_products_where_the_map_is_4x4():
    generator, discriminator = Generator(PAPER, 100), Discriminator(PAPER)
    used = [
        convolutions._is_worthwhile(layer.weight, torch.zeros(64, 1), positions)
        for layers in (generator.up, reversed(discriminator.down))
        for layer, positions in zip(layers, (16, 64, 256, 1024), strict=True)
    ]
    assert used == [True, False, False, False] * 2


def test_the_projection_is_a_transposed_convolution():
    layer = Projection(7, 5, 4, bias=True)
    z = torch.randn(3, 7)
    expected = nn.functional.conv_transpose2d(z[:, :, None, None], layer.weight, layer.bias)
    torch.testing.assert_close(layer(z), expected)


def save(folder, networks, latent=5, norm="batch") -> None:
    sizes = {"channels": [16, 8, 8], "latent": latent, "patch_size": 32, "norm": norm}
    save_model(folder, weights_of(**networks), {"model": "gan", "architecture": sizes})


@pytest.mark.parametrize("norm", NORMS)
def test_a_model_survives_the_disk(tmp_path, norm):
    networks = used_networks(norm)
    save(tmp_path, networks, norm=norm)
    model = load_model(tmp_path, torch.device("cpu"))
    assert (model.name, Architecture.of(model)) == ("gan", Architecture((16, 8, 8), 5, 32))
    generator, discriminator = load_gan(model)
    z = torch.rand(4, 5)
    x = networks["generator"](z)
    torch.testing.assert_close(generator.eval()(z), x)
    torch.testing.assert_close(discriminator.eval()(x), networks["discriminator"](x))


@pytest.mark.parametrize("damage", ["missing", "truncated", "pickle", "description", "latent"])
def test_a_damaged_model_is_refused_in_one_sentence(tmp_path, damage):
    save(tmp_path, used_networks(), latent=7 if damage == "latent" else 5)
    weights = tmp_path / "weights.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "pickle":
        torch.save({"a": torch.zeros(1)}, weights)
    elif damage == "description":
        (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"not a complete model|do not fit"):
        load_gan(load_model(tmp_path, torch.device("cpu")))


@pytest.mark.parametrize("missing", ["channels", "latent"])
def test_an_architecture_with_a_hole_is_refused(tmp_path, missing):
    save(tmp_path, used_networks())
    model = load_model(tmp_path, torch.device("cpu"))
    del model.architecture[missing]
    with pytest.raises(InputError, match="no architecture"):
        load_gan(model)
