"""The ways a stage can go: lists of upper left pixels, for the tests of the mosaic."""

from __future__ import annotations

import random

Corner = tuple[int, int]


def serpentine(rows: int, cols: int, step: Corner, start: Corner = (0, 0)) -> list[Corner]:
    """Row by row, every other one backwards."""
    corners = []
    for i in range(rows):
        one_way = range(cols) if i % 2 == 0 else reversed(range(cols))
        corners += [(start[0] + i * step[0], start[1] + j * step[1]) for j in one_way]
    return corners


def shuffled(corners: list[Corner], seed: int = 1) -> list[Corner]:
    """The same places in any order."""
    return random.Random(seed).sample(corners, len(corners))


def spiral(turns: int, step: Corner) -> list[Corner]:
    """Outwards from (0, 0), so that the mosaic grows on all four sides."""
    corners, row, col = [(0, 0)], 0, 0
    heading, length = 0, 1
    while len(corners) < (2 * turns + 1) ** 2:
        for _ in range(2):
            for _ in range(length):
                drow, dcol = ((0, 1), (-1, 0), (0, -1), (1, 0))[heading % 4]
                row, col = row + drow * step[0], col + dcol * step[1]
                corners.append((row, col))
            heading += 1
        length += 1
    return corners[: (2 * turns + 1) ** 2]


def scattered(count: int, extent: int, seed: int = 2) -> list[Corner]:
    """Anywhere, on either side of (0, 0), and now and then the same place again."""
    rng = random.Random(seed)
    corners: list[Corner] = []
    for _ in range(count):
        if corners and rng.random() < 0.25:
            corners.append(rng.choice(corners))
        else:
            corners.append((rng.randint(-extent, extent), rng.randint(-extent, extent)))
    return corners


def to_upper_left(count: int, step: Corner) -> list[Corner]:
    """Each frame further up and to the left: indices turn negative and new tops appear."""
    return [(-i * step[0], -i * step[1]) for i in range(count)]


#: Name → (frame shape, corners), for tiles of 16 pixels.
SCANS: dict[str, tuple[Corner, list[Corner]]] = {
    "serpentine": ((24, 24), serpentine(3, 4, (20, 20), (-7, 3))),
    "random": ((24, 24), shuffled(serpentine(3, 4, (19, 21)))),
    "spiral": ((20, 20), spiral(1, (17, 17))),
    "revisits": ((24, 20), serpentine(2, 3, (18, 15)) + serpentine(2, 3, (18, 15), (1, 0))),
    "growth to the upper left": ((18, 18), to_upper_left(8, (13, 15))),
    "growth by leaps": ((9, 9), [(0, 0), (40, 40), (-300, 20), (700, -900), (3, 3)]),
    "not square": ((13, 45), serpentine(4, 2, (10, 40), (-5, -60))),
    "smaller than a tile": ((5, 7), scattered(14, 30)),
    "on tile borders": ((16, 32), [*serpentine(3, 2, (16, 32), (-16, -32)), (0, 0)]),
    "tile by tile": ((16, 16), shuffled(serpentine(3, 3, (16, 16), (-16, -16)))),
    "single pixels": ((1, 1), scattered(12, 20, seed=5)),
    "scattered": ((22, 17), scattered(14, 60)),
}
