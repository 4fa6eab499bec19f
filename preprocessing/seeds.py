"""One seed in the config, one independent stream per thing that is worked on."""

import hashlib


def derive_seed(seed: int, *labels: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and on every label, and on nothing else.

    A result seeded by what it is (a volume's id, a patch's position) cannot depend on the order
    of the work, the batch size, the chunk or the number of workers.
    """
    text = "\x1f".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
