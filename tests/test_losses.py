"""The losses of the GAN by hand, and that what minimises them tells real from fake."""

import math

import pytest
import torch
from made_gan import make_gan, real_batch

from anogan.losses import LOSSES, gradient_penalty

REAL, FAKE = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([-3.0, 0.25, 1.0])


def minus_log_probability(*logits: float) -> float:
    return -sum(math.log(1 / (1 + math.exp(-logit))) for logit in logits) / len(logits)


@pytest.mark.parametrize(
    ("loss", "of_d", "of_g"),
    [
        (
            "dcgan",
            minus_log_probability(2, -1, 0.5) + minus_log_probability(3, -0.25, -1),
            minus_log_probability(-3, 0.25, 1),
        ),
        ("wgan-gp", -1.75 / 3 - 1.5 / 3, 1.75 / 3),
        ("hinge", (0 + 2 + 0.5) / 3 + (0 + 1.25 + 2) / 3, 1.75 / 3),
    ],
)
def test_losses_are_what_their_papers_say(loss, of_d, of_g):
    assert float(LOSSES[loss].d(REAL, FAKE)) == pytest.approx(of_d)
    assert float(LOSSES[loss].g(FAKE)) == pytest.approx(of_g)


def test_the_penalty_is_that_of_gulrajani(rng):
    """A critic w . x has the slope |w| everywhere."""
    weight = torch.from_numpy(rng.normal(size=64)).float()

    def critic(x):
        return x.flatten(1) @ weight

    real, fake = torch.rand(2, 5, 1, 8, 8)
    penalty = gradient_penalty(critic, real, fake, torch.rand(5))
    assert penalty.item() == pytest.approx(float(weight.norm() - 1) ** 2, rel=1e-4)


def test_the_penalty_is_taken_between_real_and_fake():
    """The slope of sum x^3 is 3 x^2, so it shows where it was taken."""
    real = torch.tensor([[1.0, 2.0], [0.0, 4.0]]).reshape(2, 1, 1, 2)
    fake = torch.tensor([[3.0, 0.0], [2.0, 0.0]]).reshape(2, 1, 1, 2)
    shares = torch.tensor([0.5, 0.25])
    penalty = gradient_penalty(lambda x: (x**3).sum((1, 2, 3)), real, fake, shares)
    first = math.hypot(3 * 2**2, 3 * 1**2)  # at (2, 1)
    second = math.hypot(3 * 1.5**2, 3 * 1**2)  # at (1.5, 1)
    assert penalty.item() == pytest.approx(((first - 1) ** 2 + (second - 1) ** 2) / 2)


def test_the_penalty_moves_the_critic():
    """Of the critic w x^3 at x = 1 it is (|3 w| - 1)^2, whose slope at w = 2 is 30."""
    weight = torch.tensor(2.0, requires_grad=True)
    one = torch.ones(4, 1, 1, 1)
    gradient_penalty(lambda x: (weight * x**3).flatten(), one, one, torch.rand(4)).backward()
    assert float(weight.grad) == pytest.approx(30)


def learn_without_generator(gan, steps: int) -> list[dict]:
    """Let D learn from the same real and the same fake patches; return what it logged."""
    made = [gan.step(real_batch(), 1, torch.Generator().manual_seed(0)) for _ in range(steps)]
    return [{name: float(value) for name, value in logged.items()} for logged in made]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_discriminator_learns_to_tell_real_from_fake(tmp_path, loss):
    gan = make_gan(tmp_path, "--loss", loss, "--critic-steps", 2)
    first, *_, last = learn_without_generator(gan, 30)
    real, fake = ("d_real", "d_fake") if loss == "dcgan" else ("critic_real", "critic_fake")
    assert last["d_loss"] < 0.5 * first["d_loss"]
    assert last[real] - last[fake] > 0.5


def test_the_penalty_keeps_the_critic_from_being_steep(tmp_path):
    def distance(penalty):
        gan = make_gan(tmp_path, "--loss", "wgan-gp", "--critic-steps", 2, "--penalty", penalty)
        last = learn_without_generator(gan, 30)[-1]
        return last["critic_real"] - last["critic_fake"]

    none, published, strong = map(distance, (0, 10, 20))
    assert none > 1.5 * published > 1.5 * 1.2 * strong
