"""Selectors in plain loops, in double precision, as their papers write them: what is kept of one group of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.oracles.controls import uniform_kept, window_kept


def cosines(first: Tensor, second: Tensor) -> list[list[float]]:
    """Cosine of every row of one [N, D] with every row of the other; 0 for a row of zeros."""

    def cosine(a: Tensor, b: Tensor) -> float:
        lengths = float(a.norm() * b.norm())
        return float(a @ b) / lengths if lengths else 0.0

    return [[cosine(a, b) for b in second.double()] for a in first.double()]


def _first_best(candidates: Sequence[int], value: Callable[[int], float]) -> int:
    return min(candidates, key=lambda index: (-value(index), index))


def divprune_kept(features: Tensor, keep: int) -> list[int]:
    """Max-min diversity, with every distance looked at in every step."""
    table = [[1 - c for c in row] for row in cosines(features, features)]
    every = range(len(table))
    chosen = [_first_best(every, lambda i: min([table[i][j] for j in every if j != i], default=2.0))]
    while len(chosen) < keep:
        rest = [i for i in every if i not in chosen]
        chosen.append(_first_best(rest, lambda i: min(table[i][j] for j in chosen)))
    return sorted(chosen)


def fps_kept(features: Tensor, keep: int) -> list[int]:
    """Farthest point sampling from the point farthest from the mean."""
    x = features.double()
    every = range(len(x))
    chosen = [_first_best(every, lambda i: float((x[i] - x.mean(0)).norm()))]
    while len(chosen) < keep:
        rest = [i for i in every if i not in chosen]
        chosen.append(_first_best(rest, lambda i: min(float((x[i] - x[j]).norm()) for j in chosen)))
    return sorted(chosen)


def cosine_kept(features: Tensor, keep: int) -> list[int]:
    """The lowest mean cosine to all tokens."""
    table = cosines(features, features)
    return sorted(sorted(range(len(table)), key=lambda i: (sum(table[i]), i))[:keep])


def relevance(features: Tensor, words: Tensor) -> list[float]:
    """Mean cosine of each token to the words; rows of zeros are no words."""
    asked = [word for word in words if bool(word.any())]
    return [sum(row) / len(asked) for row in cosines(features, torch.stack(asked))]


def cdpruner_kernel(features: Tensor, words: Tensor, theta: float | None = None) -> Tensor:
    """[N, N]: quality_i cosine_ij quality_j."""
    raw = relevance(features, words)
    least, most = min(raw), max(raw)
    scaled = [(r - least + 1e-6) / (most - least + 1e-6) for r in raw]
    if theta is not None:
        scaled = [math.exp(theta / (2 * (1 - theta)) * r) for r in scaled]
    quality = torch.tensor(scaled, dtype=torch.double)
    table = torch.tensor(cosines(features, features), dtype=torch.double).fill_diagonal_(1.0)
    return quality[:, None] * table * quality


def greedy_determinant(kernel: Tensor, keep: int) -> list[int]:
    """Each next token makes the determinant of the chosen part of the kernel largest; determinants are computed anew."""
    chosen: list[int] = []
    while len(chosen) < keep:
        rest = [i for i in range(len(kernel)) if i not in chosen]
        chosen.append(_first_best(rest, lambda i: float(kernel[[*chosen, i]][:, [*chosen, i]].det())))
    return sorted(chosen)


def cdpruner_kept(features: Tensor, words: Tensor, keep: int, theta: float | None = None) -> list[int]:
    """Tokens that are relevant to the words and unlike each other."""
    return greedy_determinant(cdpruner_kernel(features, words, theta), keep)


def v2drop_kept(before: Tensor, after: Tensor, keep: int) -> list[int]:
    """The tokens whose states [N, D] moved most."""
    moved = [float((b.double() - a.double()).norm()) for a, b in zip(before, after, strict=True)]
    return sorted(sorted(range(len(moved)), key=lambda i: (-moved[i], i))[:keep])


def covering_kept(table: list[list[float]], weight: Sequence[float], keep: int) -> list[int]:
    """Greedy coverage: table[candidate][row]; all gains are computed anew in each step."""
    covered, chosen = [0.0] * len(table[0]), list[int]()
    while len(chosen) < keep:
        rest = [i for i in range(len(table)) if i not in chosen]

        def gain(i: int, so_far: list[float] = covered) -> float:
            return weight[i] * sum(max(0.0, given - before) for given, before in zip(table[i], so_far, strict=True))

        best = _first_best(rest, gain)
        chosen.append(best)
        covered = [max(pair) for pair in zip(covered, table[best], strict=True)]
    return sorted(chosen)


def scope_kept(features: Tensor, attention: Sequence[float], keep: int, alpha: float = 1.0) -> list[int]:
    """Coverage by cosine, weighted by attention."""
    return covering_kept(cosines(features, features), [a**alpha for a in attention], keep)


def mmtok_kept(
    features: Tensor, words: Tensor, keep: int, text: float = 0.01, image: float = 0.2, picture: float = 0.5
) -> list[int]:
    """Coverage of words and of tokens, each by a softmax over the tokens."""
    asked = torch.stack([word for word in words if bool(word.any())])
    by_word = (torch.tensor(cosines(asked, features)) / text).softmax(1) / len(asked)
    by_token = (torch.tensor(cosines(features, features)) / image).softmax(1) * picture / len(features)
    table = torch.cat([by_word.double(), by_token.double()]).T.tolist()
    return covering_kept(table, [1.0] * len(features), keep)


def visionzip_kept(
    features: Tensor, attention: Sequence[float], keys: Tensor, keep: int, contextual: float = 0.15625
) -> dict[int, Tensor]:
    """State of each survivor: dominant ones as they are, contextual ones plus the mean of those that joined them."""
    count = len(attention)
    gathering = int(keep * contextual + 0.5)
    order = sorted(range(count), key=lambda i: (-attention[i], i))
    dominant = order[: keep - gathering]
    rest = [i for i in range(count) if i not in dominant]
    targets = [rest[number * (len(rest) // gathering)] for number in range(gathering)] if gathering else []
    joined: dict[int, list[int]] = {target: [] for target in targets}
    table = cosines(keys, keys)
    for i in rest:
        if targets and i not in targets:
            joined[_first_best(targets, lambda t, i=i: table[i][t])].append(i)
    x = features.double()
    left = {i: x[i] for i in dominant}
    return left | {t: x[t] + (sum(x[i] for i in own) / len(own) if own else 0) for t, own in joined.items()}


def vispruner_kept(
    features: Tensor, attention: Sequence[float], keep: int, important: float = 0.5, at_once: int = 8
) -> list[int]:
    """Important tokens, then of every second other one those that are most like one of the rest leave, round by round."""
    order = sorted(range(len(attention)), key=lambda i: (-attention[i], i))
    chosen = order[: int(keep * important + 0.5)]
    rest = sorted(order[len(chosen) :])
    wanted = keep - len(chosen)
    table = cosines(features, features)
    while wanted and len(rest) > wanted:
        first, second = rest[::2], rest[1::2]
        ranked = sorted(first, key=lambda i: (-max(table[i][j] for j in second), i))
        gone = ranked[: min(at_once, len(rest) - wanted)]
        rest = [i for i in rest if i not in gone]
    return sorted([*chosen, *rest[:wanted]])


def hiprune_kept(
    middle: Sequence[float], last: Sequence[float], coords: Sequence[tuple[int, int, int]], keep: int, alpha: float = 0.1
) -> list[int]:
    """Anchors, the tokens beside them, and the last layer's for the rest."""
    every = range(len(last))
    anchors = sorted(every, key=lambda i: (-middle[i], i))[: int(alpha * keep / 5 + 1e-9)]
    beside = {
        i
        for i in every
        for a in anchors
        if coords[i][0] == coords[a][0] and abs(coords[i][1] - coords[a][1]) + abs(coords[i][2] - coords[a][2]) <= 1
    }
    return sorted(sorted(every, key=lambda i: (i not in beside, i if i in beside else -last[i], i))[:keep])


def holov_kept(features: Tensor, attention: Sequence[float], keep: int, parts: int = 16, context: float = 0.09) -> list[int]:
    """A quota for each part of the raster, then what is left over one by one to the parts with most to tell and room."""
    count = len(attention)
    cuts = [cut.tolist() for cut in torch.tensor_split(torch.arange(count), parts) if len(cut)]
    table = cosines(features, features)
    uneven = [0.0] * count
    for cut in cuts:
        for i in cut:
            others = [table[i][j] for j in cut if j != i]
            mean = sum(others) / len(others) if others else 0.0
            uneven[i] = sum((c - mean) ** 2 for c in others) / len(others) if others else 0.0
    balance = sum(attention) / (sum(uneven) or 1)
    score = [a + context * u * balance for a, u in zip(attention, uneven, strict=True)]
    weight = [sum(score[i] for i in cut) / len(cut) for cut in cuts]
    quota = [min(len(cut), math.floor(keep * w / sum(weight) + 1e-6)) for cut, w in zip(cuts, weight, strict=True)]
    turns = sorted(range(len(cuts)), key=lambda p: (-weight[p], p))
    while sum(quota) < keep:
        for part in turns:
            if sum(quota) < keep and quota[part] < len(cuts[part]):
                quota[part] += 1
    ranked = [sorted(cut, key=lambda i: (-attention[i], i))[:n] for cut, n in zip(cuts, quota, strict=True)]
    return sorted(i for own in ranked for i in own)


def dart_kept(features: Tensor, norms: Sequence[float], words: Tensor, keep: int, image: int, text: int) -> list[int]:
    """Visual pivots, then for each pivot in turn the tokens that are least like it."""
    order = sorted(range(len(norms)), key=lambda i: (-norms[i], i))
    chosen = order[: min(image, keep)]
    pivots = [features[i] for i in chosen]
    pivots += [word if bool(word.any()) else features[chosen[0]] for word in words[:text]]
    each = math.ceil((keep - len(chosen)) / len(pivots))
    for pivot in pivots:
        likeness = [row[0] for row in cosines(features, pivot[None])]
        rest = [i for i in range(len(norms)) if i not in chosen]
        chosen += sorted(rest, key=lambda i: (likeness[i], i))[: min(each, keep - len(chosen))]
    return sorted(chosen)


def global_local_kept(
    features: Tensor,
    late: Sequence[float],
    early: Sequence[float],
    coords: Sequence[tuple[int, int, int]],
    sizes: Tensor,
    keep: int,
    window: int = 4,
    merge: bool = True,
) -> dict[int, Tensor]:
    """State of each survivor: half of them window by window, half anywhere; the others join the most similar one by size."""
    chosen = window_kept(list(early), list(coords), keep // 2, window) if keep // 2 else []
    rest = [i for i in range(len(late)) if i not in chosen]
    chosen += sorted(rest, key=lambda i: (-late[i], i))[: keep - keep // 2]
    members = {i: [i] for i in sorted(chosen)}
    table = cosines(features, features)
    if merge:
        for i in range(len(late)):
            if i not in members:
                members[_first_best(sorted(chosen), lambda k, i=i: table[i][k])].append(i)
    x, n = features.double(), sizes.double()
    return {k: sum(x[i] * n[i] for i in own) / sum(n[i] for i in own) for k, own in members.items()}


def evs_kept(features: Tensor, coords: Sequence[Sequence[int]], keep: int) -> list[int]:
    """Tokens without an earlier one at their place, then those that turned most since; too many of the first are spread out."""
    x = torch.nn.functional.normalize(features.double(), dim=-1)
    first, turned = list[int](), dict[int, float]()
    for i, (t, *place) in enumerate(coords):
        before = [j for j, (other, *there) in enumerate(coords) if there == place and other < t]
        if before:
            latest = max(before, key=lambda j: coords[j][0])
            turned[i] = round(float((x[i] - x[latest]).square().sum()) / 2, 5)
        else:
            first.append(i)
    if keep < len(first):
        return [first[place] for place in uniform_kept(len(first), keep)]
    return sorted([*first, *sorted(turned, key=lambda i: (-turned[i], i))[: keep - len(first)]])


def vidcom2_kept(features: Tensor, coords: Sequence[Sequence[int]], keep: int) -> list[int]:
    """Shares of frames from how unlike the video they are; in each the tokens stay that are least like video and frame."""
    wide = features.double()
    channels = sorted(range(wide.shape[1]), key=lambda c: (float(wide[:, c].var(correction=0)), c))[: wide.shape[1] // 2]
    x = torch.nn.functional.normalize(wide[:, channels], dim=-1)
    frames = [[i for i, own in enumerate(coords) if own[0] == t] for t in sorted({own[0] for own in coords})]

    def alike(i: int, centre: Tensor) -> float:
        return sum(math.exp(-float((x[i] - centre).square().sum()) / (2 * 2.0**power)) for power in range(-3, 2))

    video = [alike(i, x.mean(0)) for i in range(len(x))]
    score = {i: round(video[i] + alike(i, x[own].mean(0)), 5) for own in frames for i in own}
    unlike = torch.tensor([-round(sum(video[i] for i in own) / len(own), 5) / 0.01 for own in frames], dtype=torch.double)
    scale = [1 + round(p, 6) - 1 / len(frames) for p in unlike.softmax(0).tolist()]
    total = sum(len(own) * each for own, each in zip(frames, scale, strict=True))
    shares = [math.floor(1000 * keep * len(own) * each / total + 0.3) for own, each in zip(frames, scale, strict=True)]
    quota = [min(len(own), max(1, share // 1000)) for own, share in zip(frames, shares, strict=True)]
    turns = sorted(range(len(frames)), key=lambda f: (-(shares[f] % 1000), f))
    beyond = [q - share // 1000 for q, share in zip(quota, shares, strict=True)]
    while sum(quota) < keep:  # one more for the frame that is least beyond its share, of equal ones with the largest rest
        f = min((f for f in turns if quota[f] < len(frames[f])), key=lambda f: beyond[f])
        quota[f], beyond[f] = quota[f] + 1, beyond[f] + 1
    while sum(quota) > keep:  # one fewer for the one most beyond it, of equal ones with the smallest rest; none when it must be
        f = max((f for f in turns[::-1] if quota[f] > 1), key=lambda f: beyond[f], default=turns[-1])
        quota[f], beyond[f] = quota[f] - 1, beyond[f] - 1
        turns = [f for f in turns if quota[f]]
    ranked = [sorted(own, key=lambda i: (score[i], i))[:n] for own, n in zip(frames, quota, strict=True)]
    return sorted(i for own in ranked for i in own)


def raters(visual: Tensor, words: Tensor) -> list[int]:
    """Words that take more of a softmax over the words, in the mean over visual tokens, than words do on average."""
    match = [0.0] * len(words)
    for token in visual.double():
        products = [float(token @ word) for word in words.double()]
        exponentials = [math.exp(product - max(products)) for product in products]
        for number, one in enumerate(exponentials):
            match[number] += one / sum(exponentials) / len(visual)
    mean = sum(match) / len(match)
    better = [number for number, one in enumerate(match) if one > mean * (1 + 1e-6)]
    return better or list(range(len(words)))


def density_clusters(points: Tensor, count: int) -> dict[int, list[int]]:
    """DPC-kNN: members of each centre. Density is exp(-spread); logarithms of what is multiplied."""
    x, every = points.double(), range(len(points))
    table = [[float((a - b).square().sum()) / x.shape[1] for b in x] for a in x]
    spread = [sum(sorted(row)[:count]) / count for row in table]

    def distance(i: int) -> float:
        denser = [table[i][j] for j in every if (spread[j], j) < (spread[i], i)]
        return min(denser, default=max(map(max, table))) ** 0.5

    def score(i: int) -> float:
        return math.log(distance(i)) - spread[i] if distance(i) else -math.inf

    centres = sorted(sorted(every, key=lambda i: (-score(i), i))[:count])
    members: dict[int, list[int]] = {centre: [centre] for centre in centres}
    for i in every:
        if i not in members:
            members[min(centres, key=lambda c, i=i: (table[i][c], c))].append(i)
    return members


def sparsevlm_kept(features: Tensor, attention: Sequence[float], keep: int, recycle: float = 0.3) -> dict[int, Tensor]:
    """State of each survivor: the best as they are, then the means of clusters of some of those that come next."""
    count, x = len(attention), features.double()
    order = sorted(range(count), key=lambda i: (-attention[i], i))
    fitting = [(0, 0)]
    for clusters in range(1, keep):  # the fewest clusters that leave exactly `keep` tokens
        rejected = count - keep + clusters
        sources = min(int(rejected * recycle) + 1, rejected)
        fitting += [(clusters, sources)] if min(sources // 10 + 1, keep - 1) == clusters else []
    clusters, sources = fitting[1] if recycle and keep < count and len(fitting) > 1 else (0, 0)
    plain = order[: keep - clusters]
    left = {i: x[i] for i in plain}
    if clusters:
        recycled = sorted(order[keep - clusters :][:sources])
        for centre, own in density_clusters(features[recycled], clusters).items():
            left[recycled[centre]] = sum(x[recycled[i]] for i in own) / len(own)
    return left


def differences(pixels: Tensor, coords: Sequence[Sequence[int]]) -> list[float]:
    """Of each square the largest difference of a value to the nearer of its neighbours, 1 for one without."""
    values = pixels.double()
    known = {tuple(place): number for number, place in enumerate(coords)}
    span = float(values.max() - values.min())
    found = []
    for place, (t, y, x) in enumerate(coords):
        near = [known[other] for other in ((t, y, x - 1), (t, y - 1, x)) if other in known]
        gaps = [float((values[place] - values[other]).abs().max()) for other in near]
        found.append(round(min(min(gaps) / span if span else 0.0, 1.0), 6) if gaps else 1.0)
    return found


def pixelprune_kept(pixels: Tensor, coords: Sequence[Sequence[int]], keep: int) -> list[int]:
    """The squares that differ most from their nearer neighbour; of equal ones the earlier."""
    score = differences(pixels, coords)
    return sorted(sorted(range(len(score)), key=lambda i: (-score[i], i))[:keep])
