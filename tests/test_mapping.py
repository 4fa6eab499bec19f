"""What a score may not depend on, and what the mapping may not touch."""

import numpy as np
import pandas as pd
import pytest
import torch

from anogan.map import choose_residuals, map_file
from anogan.mapping import Mapper, MappingSettings, padded_batches, random_latents
from anogan.networks import Discriminator, Generator, freeze
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter

CHANNELS, LATENT, SIZE = (16, 8, 8), 6, 32


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(1)
    generator, discriminator = Generator(CHANNELS, LATENT), Discriminator(CHANNELS)
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.weight.data *= 4  # fresh weights make gray patches that do not react to z
    discriminator(generator(torch.rand(32, LATENT) * 2 - 1))
    freeze(generator, discriminator)
    return generator, discriminator


def mapper(networks, **settings) -> Mapper:
    return Mapper(*networks, MappingSettings(**{"steps": 20, "batch_size": 4, **settings}))


@pytest.fixture(scope="module")
def patch_file(tmp_path_factory):
    """Eleven patches of two volumes, the second half anomalous."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("patches") / "p.h5"
    index = np.zeros(11, INDEX_DTYPE)
    index["volume"] = [b"a"] * 6 + [b"b"] * 5
    index["patient"], index["split"], index["label_source"] = index["volume"], b"test", b"eye"
    index["x"] = np.arange(11)
    index["label"] = [0] * 6 + [1] * 5
    gray = rng.uniform(-1, 1, (11, SIZE, SIZE)).astype(np.float16)
    with PatchWriter(path, SIZE) as writer:
        writer.append(gray, np.full(gray.shape, 255, np.uint8), index)
    return path


def run(path, mapper, methods=("anogan", "gan_r"), residuals=4):
    return map_file(str(path), mapper, list(methods), residuals, torch.device("cpu"))


def reordered(path, order, target):
    """Write the patches `order` of a file into another."""
    from preprocessing.patch_file import open_patches

    with open_patches(path) as file, PatchWriter(target, SIZE) as writer:
        writer.append(*(file[name][:][order] for name in ("patches", "masks", "index")))
    return target


def test_scores_are_what_their_formulas_say(networks):
    generator, discriminator = networks
    x, z = torch.rand(3, 1, SIZE, SIZE), torch.rand(3, LATENT)
    for layer in (1, 3, 0):
        scores, _ = mapper(networks, weight=0.3, feature_layer=layer).score(x, z)
        f = [discriminator.features(v, layer or 3) for v in (x, generator(z))]
        for i in range(3):
            r = (x[i] - generator(z)[i]).abs().sum()
            d = (f[0][i] - f[1][i]).abs().sum()
            d_hat = -torch.log(torch.sigmoid(discriminator(generator(z))[i]))
            expected = [r, d, 0.7 * r + 0.3 * d, d_hat, 0.7 * r + 0.3 * d_hat, -discriminator(x)[i]]
            for name, value in zip(("R", "D", "A", "D_hat", "A_hat", "P_D"), expected, strict=True):
                torch.testing.assert_close(scores[name][i], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["anogan", "gan_r"])
def test_the_search_finds_what_the_generator_made(networks, method):
    generator, _ = networks
    truth = torch.rand(4, LATENT, generator=torch.Generator().manual_seed(3)) * 2 - 1
    x = generator(truth)
    search = mapper(networks, steps=300, learning_rate=0.1, schedule="cosine")
    starts = random_latents(list("abcd"), LATENT, 3, 1)
    z = search.best(x, starts, method)
    before = search.score(x, starts[0])[0]["R"]
    after = search.score(x, z)[0]["R"]
    assert (after < 0.2 * before).all()


def test_only_z_moves(networks):
    weights = [
        {name: value.clone() for name, value in network.state_dict().items()}
        for network in networks
    ]
    x = torch.rand(4, 1, SIZE, SIZE)
    start = torch.rand(4, LATENT)
    z = mapper(networks).best(x, start[None], "anogan")
    assert (z != start).any(dim=1).all()
    for network, before in zip(networks, weights, strict=True):
        for name, value in network.state_dict().items():
            assert torch.equal(value, before[name])


def test_more_restarts_never_fit_worse(networks):
    x = torch.rand(4, 1, SIZE, SIZE)
    starts = random_latents(list("abcd"), LATENT, 3, 1)
    one, three = mapper(networks), mapper(networks, restarts=3)
    loss_one = one.score(x, one.best(x, starts[:1], "anogan"))[0]["A"]
    loss_three = three.score(x, three.best(x, starts, "anogan"))[0]["A"]
    assert (loss_three <= loss_one).all()
    assert (loss_three < loss_one).any()


def test_the_nearest_candidate_is_where_the_search_starts(networks):
    generator, _ = networks
    near = mapper(networks, candidates=50, restarts=2)
    x = generator(near.candidates[[7, 30, 2]])
    starts = near.starts(x, list("abc"))
    assert starts.shape == (2, 3, LATENT)
    assert torch.equal(starts[0], near.candidates[[7, 30, 2]])
    assert not torch.equal(starts[1], starts[0])


@pytest.mark.parametrize("candidates", [0, 20])
def test_a_score_does_not_depend_on_order_or_company(networks, patch_file, tmp_path, candidates):
    table, _, _ = run(patch_file, mapper(networks, candidates=candidates))
    again, _, _ = run(patch_file, mapper(networks, candidates=candidates))
    pd.testing.assert_frame_equal(table, again)  # to the last bit
    keys = ["volume", "x", "method"]
    reference = table.set_index(keys).sort_index()
    for name, order in (("reversed", np.arange(11)[::-1]), ("few", np.array([9, 2, 7]))):
        other = reordered(patch_file, order, tmp_path / f"{name}.h5")
        scores = run(other, mapper(networks, candidates=candidates))[0].set_index(keys).sort_index()
        pd.testing.assert_frame_equal(scores, reference.loc[scores.index])


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_score_does_not_depend_on_the_batch_size(networks, patch_file, batch_size):
    reference, _, _ = run(patch_file, mapper(networks))
    scores, _, _ = run(patch_file, mapper(networks, batch_size=batch_size))
    # another shape may take another kernel, so the last bits may differ
    for name in ("R", "D", "A", "D_hat", "A_hat", "P_D"):
        np.testing.assert_allclose(scores[name], reference[name], rtol=1e-3, atol=1e-3)


def test_the_table_has_every_patch_for_every_method(networks, patch_file):
    table, rows, generated = run(patch_file, mapper(networks))
    assert table.groupby("method")["x"].apply(list).to_dict() == {
        "anogan": list(range(11)),
        "gan_r": list(range(11)),
    }
    assert generated.shape == (4, SIZE, SIZE)
    assert (table["label"].iloc[rows].value_counts() == 2).all()
    same_score = table.set_index(["method", "x"])["P_D"]  # needs no mapping
    np.testing.assert_allclose(same_score["anogan"], same_score["gan_r"])


def test_kept_residuals_belong_to_their_patches(networks, patch_file):
    table, rows, generated = run(patch_file, mapper(networks))
    from preprocessing.patch_file import open_patches

    with open_patches(patch_file) as file:
        residual = np.abs(file["patches"][rows].astype(np.float32) - generated).sum((1, 2))
    expected = table[table["method"] == "anogan"]["R"].iloc[rows]
    np.testing.assert_allclose(residual, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(0, {}), (1, {1: 1}), (12, {0: 6, 1: 6}), (30, {0: 20, 1: 10}), (100, {0: 80, 1: 10, -1: 10})],
)
def test_the_choice_of_residuals_is_balanced(count, chosen):
    index = pd.DataFrame({"label": [-1] * 10 + [0] * 80 + [1] * 10})
    rows = choose_residuals(index, [str(i) for i in range(100)], count)
    assert index["label"].iloc[rows].value_counts().to_dict() == chosen


def test_starts_fill_the_support_of_the_prior():
    z = random_latents([str(i) for i in range(500)], 20, 2, 1)
    assert z.shape == (2, 500, 20)
    assert z.min() >= -1
    assert z.max() <= 1
    np.testing.assert_allclose([z.mean(), z.var()], [0, 1 / 3], atol=0.02)


def test_the_last_batch_is_not_dropped():
    batches = list(padded_batches(10, 4))
    assert [len(rows) for rows, _ in batches] == [4, 4, 4]
    assert np.concatenate([rows[:count] for rows, count in batches]).tolist() == list(range(10))
