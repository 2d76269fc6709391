"""The controls in plain loops."""

from __future__ import annotations


def uniform_kept(count: int, keep: int) -> list[int]:
    """The middle of each of `keep` equal stretches."""
    return [int((index + 0.5) * count / keep) for index in range(keep)]


def pool_matrix(grid: tuple[int, int, int], size: int) -> list[dict[int, float]]:
    """For each kept token, in raster order of the cells, {source index: weight}."""
    frames, height, width = grid
    rows = []
    for t in range(frames):
        for top in range(0, height, size):
            for left in range(0, width, size):
                cell = [
                    (t * height + y) * width + x
                    for y in range(top, min(top + size, height))
                    for x in range(left, min(left + size, width))
                ]
                rows.append({index: 1 / len(cell) for index in cell})
    return rows


def pool_matrices(grids: tuple[tuple[int, int, int], ...], size: int) -> list[dict[int, float]]:
    """The same for a medium of several grids, whose tokens follow each other."""
    rows, start = [], 0
    for grid in grids:
        rows += [{start + index: weight for index, weight in row.items()} for row in pool_matrix(grid, size)]
        start += grid[0] * grid[1] * grid[2]
    return rows


def pool3d_matrix(grid: tuple[int, int, int], time: int, size: int) -> list[dict[int, float]]:
    """The same for cells over several frames, in raster order of their first tokens."""
    frames, height, width = grid
    cells: dict[tuple[int, int, int], list[int]] = {}
    for t in range(frames):
        for y in range(height):
            for x in range(width):
                cells.setdefault((t // time, y // size, x // size), []).append((t * height + y) * width + x)
    return [dict.fromkeys(cell, 1 / len(cell)) for cell in sorted(cells.values())]


def window_kept(score: list[float], coords: list[tuple[int, int, int]], keep: int, side: int) -> list[int]:
    """Best of every window first, then second best of every window, and so on."""
    windows: dict[tuple[int, int, int], list[int]] = {}
    for index, (t, y, x) in enumerate(coords):
        windows.setdefault((t, y // side, x // side), []).append(index)
    rank = {}
    for members in windows.values():
        for place, index in enumerate(sorted(members, key=lambda i: (-score[i], i))):
            rank[index] = place
    order = sorted(range(len(score)), key=lambda i: (rank[i], -score[i], i))
    return sorted(order[:keep])


def stride_gate_kept(count: int, millionths: int) -> list[bool]:
    """Of each token of an answer: whether so many millionths of the answer pass a whole number with it."""
    kept, total = [], 0
    for _ in range(count):
        total += millionths
        kept.append(total >= 1_000_000)
        total %= 1_000_000
    return kept
