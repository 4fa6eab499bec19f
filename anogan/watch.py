"""Notices that a GAN in training has failed, from the rows of its history.

A false alarm costs a training, so every rule waits for longer than what trainings on OCT were seen
to recover from: a fresh generator makes nearly equal patches, and a discriminator can be certain of
all of them for hundreds of steps before the generator finds its way.
"""

import math
from itertools import takewhile

COLLAPSED = 0.1  # diversity, as a fraction of the real patches'; healthy trainings reach 0.8 to 1
COLLAPSED_SAMPLES = 3
COLLAPSED_SHARE = 0.05  # of the planned steps, from the first of these samples to the last
WARM_UP = 0.25  # of the planned steps, unless the generator was diverse before
CERTAIN = 0.99
MARGIN = 1.0  # logits beyond it on their side have no hinge loss, so that D learns nothing
MARGIN_LOSS = 0.01
CERTAIN_ROWS = 20
CERTAIN_SHARE = 0.25  # of the planned steps
SHORT = 1000  # steps that say nothing yet, however few are planned

REMEDY = (
    "lower gan: learning_rate, set gan: loss to hinge or wgan-gp, "
    "change the seed or train on more patches"
)


def check(history: list[dict], planned_steps: int) -> str | None:
    """Return in one sentence why the training has failed and what to do, or None if it has not.

    Rows of `history` hold `step` and any of `d_loss`, `g_loss`, D's mean probabilities `d_real` and
    `d_fake` or, where it has none, its mean logits `critic_real` and `critic_fake`, and `diversity`
    and `kid` of `anogan.sample_quality`. What was not measured is absent. Whether numbers are
    finite is looked up in the last row only, so call this for every row.
    """
    if not history:
        return None
    reason = (
        _not_finite(history[-1])
        or _collapsed(history, planned_steps)
        or _one_sided(history, planned_steps)
    )
    return reason and f"{reason}; {REMEDY}"


def is_suspect(history: list[dict]) -> bool:
    """Tell whether the last rows look as if a failure began, so that no state of them is kept."""
    if history and _not_finite(history[-1]):
        return True
    samples = [row["diversity"] for row in history if "diversity" in row]
    lost_diversity = bool(samples) and samples[-1] < COLLAPSED <= max(samples)
    certain = len(history) >= CERTAIN_ROWS and all(map(_is_certain, history[-CERTAIN_ROWS:]))
    return lost_diversity or certain


def _not_finite(row: dict) -> str | None:
    for name in ("d_loss", "g_loss"):
        if not math.isfinite(row.get(name, 0.0)):
            return f"training diverged at step {row['step']} ({name} is {row[name]})"
    if math.isnan(row.get("diversity", 0.0)):
        return f"training diverged at step {row['step']} (generated patches hold NaN)"
    return None


def _collapsed(history: list[dict], planned_steps: int) -> str | None:
    samples = [row for row in history if "diversity" in row]
    low = list(takewhile(lambda row: row["diversity"] < COLLAPSED, reversed(samples)))[::-1]
    if len(low) < COLLAPSED_SAMPLES:
        return None
    first, last = low[0]["step"], low[-1]["step"]
    was_diverse = len(low) < len(samples)
    warm_up = max(SHORT, 0 if was_diverse else WARM_UP * planned_steps)
    if last < warm_up or last - first < COLLAPSED_SHARE * planned_steps:
        return None
    return (
        f"the generator collapsed: since step {first} its patches differ among themselves "
        f"by less than {COLLAPSED:.0%} of what real ones do "
        f"({low[-1]['diversity']:.1%} at step {last})"
    )


def _one_sided(history: list[dict], planned_steps: int) -> str | None:
    """Look for a D that is certain for long while G's patches come no nearer to real ones.

    Without `kid` there is no alarm, as G was seen to learn from a D that is certain.
    """
    certain = list(takewhile(_is_certain, reversed(history)))[::-1]
    if len(certain) < CERTAIN_ROWS:
        return None
    first, last = certain[0]["step"], certain[-1]["step"]
    if last - first < max(SHORT, CERTAIN_SHARE * planned_steps):
        return None
    distances = [row["kid"] for row in certain if "kid" in row]
    half = len(distances) // 2
    if not half or min(distances[half:]) < min(distances[:half]):
        return None
    return (
        f"the discriminator has told every generated patch from the real ones since step {first} "
        f"(to step {last}), and the generator does not improve"
    )


def _is_certain(row: dict) -> bool:
    """Tell whether D knows all patches: by its probabilities, or past the margin of a hinge loss.

    The loss of a WGAN-GP critic, the distance it has found, is far below 0 with such logits.
    """
    if "d_real" in row:
        return row["d_real"] > CERTAIN and row["d_fake"] < 1 - CERTAIN
    if "critic_real" in row:
        apart = row["critic_real"] > MARGIN and row["critic_fake"] < -MARGIN
        return apart and 0 <= row["d_loss"] < MARGIN_LOSS
    return False
