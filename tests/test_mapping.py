"""What a mapped score is, what it may not depend on, and what the mapping may not touch."""

import argparse
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from anogan import convolutions, mapping
from anogan.device import choose_dtype
from anogan.mapping import Mapper, MappingLoss, SearchSettings, random_latents
from anogan.methods import anogan, gan_r, p_d
from anogan.model import TrainedModel, load_model, weights_of
from anogan.networks import Discriminator, Generator
from preprocessing.cli import run_command
from preprocessing.errors import InputError
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter

CHANNELS, LATENT, SIZE = (16, 8, 8), 6, 32
KEYS = [f"patch {i}" for i in range(11)]
CPU = torch.device("cpu")
METHODS = {"anogan": anogan, "gan_r": gan_r}


def toy_networks() -> tuple[Generator, Discriminator]:
    """Networks in eval mode whose patches react to z and whose batch norm has seen some."""
    torch.manual_seed(1)
    generator, discriminator = Generator(CHANNELS, LATENT), Discriminator(CHANNELS)
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.weight.data *= 4  # fresh weights make gray patches that do not react to z
    with torch.no_grad():
        discriminator(generator(torch.rand(32, LATENT) * 2 - 1))
    return generator.eval(), discriminator.eval()


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    generator, discriminator = toy_networks()
    architecture = {"channels": CHANNELS, "latent": LATENT, "patch_size": SIZE, "norm": "batch"}
    description = {"model": "gan", "architecture": architecture}
    weights = weights_of(generator=generator, discriminator=discriminator)
    return TrainedModel("toy", description, weights)


@pytest.fixture
def x() -> torch.Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.rand(len(KEYS), 1, SIZE, SIZE, generator=draw) * 2 - 1


def options(**given) -> argparse.Namespace:
    settings = {**vars(SearchSettings()), "steps": 20, "seed": 1}
    return argparse.Namespace(**{**settings, **given})


def scorer(model, method="anogan", dtype=torch.float32, **given):
    if dtype == torch.bfloat16 and choose_dtype("auto", CPU) != dtype:
        pytest.skip("this CPU does not multiply bf16 (no AMX)")
    return METHODS[method].scorer(model, options(**given), CPU, dtype)


def naive_loss(x, z, networks, method, settings):
    """Return (loss, R, D or D_hat) of one patch (h, w) and one z, by the formulas, unfolded."""
    generator, discriminator = networks
    generated = generator(z[None])
    r = (x - generated[0, 0]).abs().sum()
    if method == "gan_r":
        d = -torch.log(torch.sigmoid(discriminator(generated)[0]))
    else:
        depth, layer = len(CHANNELS), settings.feature_layer
        layers = range(1, depth + 1) if layer == "all" else [layer or depth]
        terms = []
        for i in layers:
            difference = discriminator.features(x[None, None], i) - discriminator.features(
                generated, i
            )
            squared = settings.feature_distance == "squared"
            terms.append((difference**2 if squared else difference.abs()).sum())
        d = sum(terms) / len(terms)
    weight = settings.weight
    convex = settings.weighting == "convex"
    return ((1 - weight) * r + weight * d if convex else weight * r + d), r, d


def naive_search(x, z, networks, method, settings):
    """Return z after the search of one patch, every optimiser written out."""
    mean, square = torch.zeros_like(z), torch.zeros_like(z)
    for step in range(settings.steps):
        z = z.detach().requires_grad_(True)
        naive_loss(x, z, networks, method, settings)[0].backward()
        slope, rate = z.grad, settings.learning_rate
        if settings.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        if settings.optimiser == "adam":
            mean = 0.9 * mean + 0.1 * slope
            square = 0.999 * square + 0.001 * slope**2
            corrected = mean / (1 - 0.9 ** (step + 1))
            slope = corrected / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        elif settings.optimiser == "rmsprop":
            square = 0.99 * square + 0.01 * slope**2
            slope = slope / (square.sqrt() + 1e-8)
        z = z.detach() - rate * slope
        if settings.clamp:
            z = z.clamp(-1, 1)
    return z


VARIANTS = [
    ("anogan", {}),
    ("anogan", {"feature_layer": 1}),
    ("anogan", {"feature_layer": 2, "weight": 0.5}),
    ("anogan", {"feature_layer": "all"}),
    ("anogan", {"feature_distance": "squared"}),
    ("anogan", {"feature_layer": "all", "feature_distance": "squared", "weighting": "additive"}),
    ("anogan", {"schedule": "cosine", "clamp": True, "learning_rate": 0.5}),
    ("anogan", {"optimiser": "rmsprop", "learning_rate": 0.01}),
    ("anogan", {"optimiser": "sgd", "learning_rate": 1e-4}),
    ("gan_r", {}),
    ("gan_r", {"weighting": "additive", "feature_layer": 1}),
]


@pytest.mark.parametrize(("method", "given"), VARIANTS)
def test_search_and_scores_are_what_their_formulas_say(model, x, method, given, monkeypatch):
    """Batched, folded and with f(x) computed once; yet as one patch at a time, written out."""
    if not given:  # as in larger networks
        monkeypatch.setattr(convolutions, "WEIGHTS_PER_POSITION", 0)
    made = scorer(model, method, steps=5, **given)
    settings, networks = made.settings, toy_networks()
    scores, generated = made(x, KEYS)
    starts = random_latents(KEYS, LATENT, 1, 1)[0]
    assert (("A", "R", "D") if method == "anogan" else gan_r.SCORES) == METHODS[method].SCORES
    for i in (0, 10):
        z = naive_search(x[i, 0], starts[i], networks, method, settings)
        assert not settings.clamp or z.abs().max() == 1  # the variant is put to the test
        expected = naive_loss(x[i, 0], z, networks, method, settings)
        torch.testing.assert_close(scores[i], torch.stack(expected).detach(), rtol=1e-3, atol=1e-3)
        made_of_z = networks[0](z[None]).detach()
        torch.testing.assert_close(generated[i], made_of_z[0], rtol=1e-2, atol=1e-2)


def test_p_d_is_the_opinion_of_the_discriminator(model, x):
    scores, rebuilt = p_d.scorer(model, options(), CPU, torch.float32)(x, KEYS)
    torch.testing.assert_close(scores[:, 0], -toy_networks()[1](x), rtol=1e-4, atol=1e-4)
    assert rebuilt is None


@pytest.mark.parametrize("method", METHODS)
def test_the_search_finds_what_the_generator_made(model, method):
    generator, _ = toy_networks()
    truth = torch.rand(4, LATENT, generator=torch.Generator().manual_seed(3)) * 2 - 1
    made = generator(truth).detach()
    search = {"steps": 150, "schedule": "cosine", "restarts": 3}
    after = scorer(model, method, **search)(made, KEYS[:4])[0][:, 1]
    before = scorer(model, method, steps=0)(made, KEYS[:4])[0][:, 1]
    assert (after < 0.2 * before).all()


def bits(mapper: Mapper) -> list[torch.Tensor]:
    return [
        value.clone()
        for network in (*mapper.exact, *mapper.fast)
        for value in network.state_dict().values()
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_z_moves(model, x, method, dtype):
    """Not the weights in the model, nor the folded ones, nor statistics, patches or starts."""
    mapper = scorer(model, method, dtype, candidates=20)
    in_file = {name: value.clone() for name, value in model.weights.items()}
    before, patches, candidates = bits(mapper), x.clone(), mapper.starts.candidates.clone()
    mapper(x, KEYS)
    assert all(torch.equal(a, b) for a, b in zip(bits(mapper), before, strict=True))
    assert all(torch.equal(model.weights[name], value) for name, value in in_file.items())
    assert torch.equal(x, patches)
    assert torch.equal(mapper.starts.candidates, candidates)
    networks = (*mapper.exact, *mapper.fast)
    assert not any(network.training for network in networks)
    assert not any(p.requires_grad for network in networks for p in network.parameters())


def test_z_moves_and_starts_anew_for_every_batch(model, x):
    mapper = scorer(model)
    start = random_latents(KEYS, LATENT, 1, 1)[0]
    loss = MappingLoss(*mapper.exact, mapper.discrimination, mapper.settings, x)
    z = mapper.search(loss, start)
    assert (z != start).all()
    assert (loss(z)[0] < loss(start)[0]).all()
    first = mapper(x, KEYS)[0]
    mapper(x.flip(0), KEYS[::-1])
    assert torch.equal(mapper(x, KEYS)[0], first)  # to the last bit
    assert torch.equal(scorer(model)(x, KEYS)[0], first)


def company_matters(mapper, x) -> bool:
    """Whether a patch's scores change when others stand beside it, or in another order."""
    alone = mapper(x, KEYS)[0]
    order = torch.tensor([3, 7, 0, 10, 1, 2, 4, 5, 6, 8, 9])
    shuffled = mapper(x[order], [KEYS[i] for i in order])[0]
    others = mapper(torch.cat([x[:4], -x[4:]]), KEYS)[0]
    return not (torch.equal(shuffled, alone[order]) and torch.equal(others[:4], alone[:4]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("candidates", [0, 20])
@pytest.mark.parametrize("as_products", [False, True])
def test_a_score_does_not_depend_on_order_or_company(
    model, x, method, dtype, candidates, as_products, monkeypatch
):
    if as_products:  # as in larger networks
        monkeypatch.setattr(convolutions, "WEIGHTS_PER_POSITION", 0)
    assert not company_matters(scorer(model, method, dtype, candidates=candidates), x)


@pytest.mark.parametrize("method", METHODS)
def test_a_network_left_in_training_mode_would_be_noticed(model, x, method, monkeypatch):
    monkeypatch.setattr(mapping, "freeze", lambda *networks: None)
    assert company_matters(scorer(model, method), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_score_does_not_depend_on_the_batch_size(model, x, dtype, batch_size):
    mapper = scorer(model, dtype=dtype)
    reference = mapper(x, KEYS)[0]
    parts = [
        mapper(x[i : i + batch_size], KEYS[i : i + batch_size])[0]
        for i in range(0, len(x), batch_size)
    ]
    # another shape may take another kernel, so the last bits may differ
    torch.testing.assert_close(torch.cat(parts), reference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_score_does_not_depend_on_the_number_of_threads(model, x, dtype):
    mapper, before = scorer(model, dtype=dtype), torch.get_num_threads()
    scores = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        scores.append(mapper(x, KEYS)[0])
    torch.set_num_threads(before)
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-3)


def test_of_several_restarts_the_best_is_kept(model, x):
    """Each patch by itself: scores and picture both of the search with the lowest loss."""
    mapper = scorer(model, restarts=3)
    loss = MappingLoss(*mapper.exact, mapper.discrimination, mapper.settings, x)
    searches = [loss(mapper.search(loss, start)) for start in mapper.starts(x, KEYS)]
    scores, generated = mapper(x, KEYS)
    best = torch.stack([found[0] for found in searches]).argmin(0)
    assert len(best.unique()) > 1
    for i, which in enumerate(best):
        expected = torch.stack([part[i] for part in searches[which][:3]])
        torch.testing.assert_close(scores[i], expected)
        torch.testing.assert_close(generated[i], searches[which][3][i])


def test_the_nearest_candidate_is_where_the_search_starts(model):
    near = scorer(model, candidates=50, restarts=2)
    generator, _ = near.exact
    candidates = near.starts.candidates
    starts = near.starts(generator(candidates[[7, 30, 2]]), KEYS[:3])
    assert starts.shape == (2, 3, LATENT)
    assert torch.equal(starts[0], candidates[[7, 30, 2]])
    assert not torch.equal(starts[1], starts[0])


def test_starts_fill_the_support_of_the_prior():
    z = random_latents([str(i) for i in range(500)], 20, 2, 1)
    assert z.shape == (2, 500, 20)
    assert z.min() >= -1
    assert z.max() <= 1
    np.testing.assert_allclose([z.mean(), z.var()], [0, 1 / 3], atol=0.02)


@pytest.mark.parametrize(
    "given",
    [{"restarts": 0}, {"steps": -1}, {"candidates": 2, "restarts": 3}, {"feature_layer": 4}],
)
def test_impossible_settings_are_refused(model, given):
    with pytest.raises(InputError, match=r"restarts|fewer than|layers 1 to 3"):
        scorer(model, **given)


def bands(n: int, seed: int, brightness: float) -> np.ndarray:
    """Patches (n, 32, 32) with a bright band at a random height, and a spot of `brightness`."""
    rng = np.random.default_rng(seed)
    rows = np.arange(SIZE)[None, :, None]
    band = np.abs(rows - rng.uniform(8, 24, (n, 1, 1))) < 4
    gray = np.where(np.broadcast_to(band, (n, SIZE, SIZE)), 0.8, -0.8)
    corner = rng.integers(2, 24, (n, 2))
    for patch, (z, x) in zip(gray, corner, strict=True):
        patch[z : z + 6, x : x + 6] += brightness * rng.uniform()
    return np.clip(gray + rng.normal(0, 0.05, gray.shape), -1, 1).astype(np.float16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("trained")
    gray = bands(256, 0, 0.0)
    index = np.zeros(len(gray), INDEX_DTYPE)
    index["volume"] = index["patient"] = b"a"
    with PatchWriter(folder / "train.h5", SIZE) as writer:
        writer.append(gray, None, index)
    sizes = ["--channels", "16", "8", "8", "--latent", "6", "--batch-size", "32"]
    steps = ["--epochs", "25", "--learning-rate", "1e-3", "--precision", "fp32"]
    files = ["--patches", str(folder / "train.h5"), "--output", str(folder / "gan")]
    assert run_command("anogan", {"train": ""}, ["train", "gan", *files, *sizes, *steps]) == 0
    return load_model(folder / "gan", CPU)


@pytest.fixture(scope="module")
def unseen() -> torch.Tensor:
    """Patches (80, 1, 32, 32), half of them with a spot."""
    gray = np.concatenate([bands(40, 1, 0.0), bands(40, 2, 1.5)])
    return torch.from_numpy(gray.astype(np.float32)).unsqueeze(1)


@pytest.mark.parametrize(
    ("method", "as_products"), [("anogan", False), ("anogan", True), ("gan_r", False)]
)
def test_the_published_search_does_not_depend_on_the_batch_size(
    trained, unseen, method, as_products, monkeypatch
):
    """Its rate does not fall, so differences in rounding grow; without consequence."""
    if as_products:  # as in larger networks
        monkeypatch.setattr(convolutions, "WEIGHTS_PER_POSITION", 0)
    keys = [str(i) for i in range(len(unseen))]
    mapper = scorer(trained, method, steps=100)
    together = mapper(unseen, keys)[0][:, 0]
    parts, first = [], 0
    for part in unseen.split([1, 23, 56]):
        parts.append(mapper(part, keys[first : first + len(part)])[0][:, 0])
        first += len(part)
    apart = torch.cat(parts)
    assert spearmanr(apart, together).statistic >= 0.999
    torch.testing.assert_close(apart, together, rtol=0.01, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_bf16_ranks_patches_as_fp32_does(trained, unseen, method):
    x, keys = unseen, [str(i) for i in range(len(unseen))]
    search = {"steps": 40, "learning_rate": 0.05, "schedule": "cosine", "candidates": 200}
    exact, fast = (
        scorer(trained, method, dtype, **search)(x, keys)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert spearmanr(exact[0][:, 0], fast[0][:, 0]).statistic >= 0.999
    assert fast[0].dtype == fast[1].dtype == torch.float32
    residual = (x - fast[1]).abs().sum((1, 2, 3))  # of fp32 networks, not of bf16 ones
    torch.testing.assert_close(fast[0][:, 1], residual, rtol=1e-6, atol=1e-3)
    unmapped = scorer(trained, method, steps=0)(x, keys)[0][:, 1]
    assert exact[0][:, 1].median() < 0.7 * unmapped.median()  # a model that has learned
