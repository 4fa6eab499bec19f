import math

import pytest

from anogan.watch import REMEDY, check, is_suspect

STEPS = 20_000
HEALTHY = {"d_loss": 0.9, "g_loss": 1.7, "d_real": 0.7, "d_fake": 0.3}
CERTAIN = {"d_loss": 0.0005, "g_loss": 9.0, "d_real": 0.9997, "d_fake": 0.0002}
NO_PROBABILITY = {"d_real": None, "d_fake": None}
HEALTHY_HINGE = {"d_loss": 1.3, "critic_real": 0.5, "critic_fake": -0.4} | NO_PROBABILITY
CERTAIN_HINGE = {"d_loss": 0.0, "critic_real": 3.0, "critic_fake": -2.5} | NO_PROBABILITY
WGAN_GP = {"d_loss": -4.5, "critic_real": 3.0, "critic_fake": -2.5} | NO_PROBABILITY


def history(n: int, every: int = 100, **columns) -> list[dict]:
    """Rows of a healthy training; a column is a value or a function of the row's number."""
    rows = []
    for i in range(n):
        row = {"step": (i + 1) * every, "epoch": (i + 1) / 10, **HEALTHY}
        row |= {name: v(i) if callable(v) else v for name, v in columns.items()}
        rows.append({name: value for name, value in row.items() if value is not None})
    return rows


def sampled(*values: float, every: int = 10):
    """Return a column that has a value in every tenth row, the last one for ever."""
    return lambda i: None if i % every else values[min(i // every, len(values) - 1)]


def first_alarm(rows: list[dict], steps: int = STEPS) -> tuple[int, str] | None:
    for i, row in enumerate(rows):
        message = check(rows[: i + 1], steps)
        if message:
            return row["step"], message
    return None


def test_a_healthy_training_raises_no_alarm():
    assert check([], STEPS) is None
    rows = history(200, diversity=sampled(0.0002, 0.14, 0.3, 0.8, 1.0), kid=sampled(80, 6, 8, 3))
    assert first_alarm(rows) is None


@pytest.mark.parametrize("name", ["d_loss", "g_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_noticed_at_once(name, value):
    rows = history(3)
    rows[-1][name] = value
    message = check(rows, STEPS)
    assert "step 300" in message and name in message and REMEDY in message


def test_a_huge_loss_is_a_number():
    assert first_alarm(history(200, g_loss=3000.0, d_loss=-1e5)) is None


def test_a_generator_that_collapses_is_noticed():
    rows = history(200, diversity=sampled(0.2, 0.9, 0.9, 0.03))
    step, message = first_alarm(rows)
    assert step == 5100
    assert "since step 3100" in message and "3.0% at step 5100" in message and REMEDY in message


def test_a_generator_that_recovers_is_left_alone():
    assert first_alarm(history(200, diversity=sampled(0.9, 0.03, 0.03, 0.9, 0.02, 0.2))) is None


def test_a_generator_that_never_was_diverse_gets_a_quarter_of_the_training():
    step, _ = first_alarm(history(200, diversity=sampled(0.001)))
    assert 0.25 * STEPS <= step < 0.3 * STEPS


@pytest.mark.parametrize("steps", [8, 56, 900])
def test_a_short_training_is_never_stopped_for_its_samples(steps):
    columns = {**CERTAIN, "diversity": 0.001, "kid": 1e4}
    assert first_alarm(history(steps, every=1, **columns), steps) is None


def test_samples_in_quick_succession_are_not_enough():
    rows = history(60, diversity=sampled(0.9, 0.05, every=1))
    step, _ = first_alarm(rows)
    assert step - 200 >= 0.05 * STEPS


def test_what_was_not_measured_is_passed_over():
    absent = dict.fromkeys(("d_loss", "g_loss", "d_real", "d_fake", "diversity", "kid"))
    assert first_alarm(history(200, **absent)) is None
    assert not is_suspect(history(200, **absent))


def test_patches_that_are_no_numbers_are_noticed_at_once():
    rows = history(3, diversity=math.nan, kid=math.nan)
    message = check(rows, STEPS)
    assert "step 300" in message and "NaN" in message and REMEDY in message
    assert is_suspect(rows)


@pytest.mark.parametrize("certain", [CERTAIN, CERTAIN_HINGE])
def test_a_discriminator_that_stays_certain_is_noticed_when_samples_get_no_better(certain):
    step, message = first_alarm(history(200, **certain, diversity=sampled(0.6), kid=sampled(5e4)))
    assert 0.25 * STEPS <= step < 0.3 * STEPS
    assert "since step 100 " in message and REMEDY in message


@pytest.mark.parametrize(
    "columns",
    [
        WGAN_GP,
        HEALTHY_HINGE,
        CERTAIN_HINGE | {"d_loss": 0.02},  # some patches are within the margin
        CERTAIN_HINGE | {"critic_real": 0.999},
        CERTAIN_HINGE | {"critic_fake": -0.999},
    ],
)
def test_a_critic_that_still_learns_is_left_alone(columns):
    rows = history(200, **columns, kid=sampled(5e4))
    assert first_alarm(rows) is None
    assert not is_suspect(rows)


@pytest.mark.parametrize(
    ("certain", "healthy"), [(CERTAIN, HEALTHY), (CERTAIN_HINGE, HEALTHY_HINGE)]
)
def test_a_discriminator_that_is_certain_for_a_while_is_left_alone(certain, healthy):
    columns = {
        name: lambda i, name=name: (certain if i % 50 > 5 else healthy)[name] for name in certain
    }
    assert first_alarm(history(200, **columns, kid=sampled(5e4))) is None


def test_a_certain_discriminator_does_not_matter_while_samples_improve():
    better = sampled(*(100 * 0.9**i for i in range(20)))
    assert first_alarm(history(200, **CERTAIN, kid=better)) is None


def test_a_certain_discriminator_alone_proves_nothing():
    assert first_alarm(history(200, **CERTAIN)) is None


def test_a_state_that_may_be_failing_is_suspect():
    assert not is_suspect([])
    assert not is_suspect(history(40, diversity=sampled(0.001, 0.05)))  # it never was better
    rows = history(40, diversity=sampled(0.05, 0.8))
    assert not is_suspect(rows)
    rows[-1]["diversity"] = 0.05  # measured for the checkpoint that is due
    assert is_suspect(rows)
    assert check(rows, STEPS) is None
    rows.append({**rows[-1], "diversity": 0.7})
    assert not is_suspect(rows)


@pytest.mark.parametrize("certain", [CERTAIN, CERTAIN_HINGE])
def test_a_discriminator_that_has_been_certain_lately_is_suspect(certain):
    assert not is_suspect(history(10, **certain))
    rows = history(40, **certain)
    assert is_suspect(rows)
    assert not is_suspect([*rows, *history(1)])
