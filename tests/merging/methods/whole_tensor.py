"""Slow, obvious merges of whole tensors in float64: what every deterministic method must equal."""

import math
from itertools import combinations

import numpy as np
import torch


def flat(tensor):
    return tensor.double().reshape(-1)


def ranked(magnitudes):
    """Indices from the largest to the smallest; of equal ones the first comes first."""
    return sorted(range(len(magnitudes)), key=lambda index: (-magnitudes[index], index))


def linear(models, base, v):
    weights = v.weights
    total = sum(weights) if v["normalize"] else 1
    return sum(w * m.double() for w, m in zip(weights, models, strict=True)) / total


def task_arithmetic(models, base, v):
    total = sum(v.weights) if v["normalize"] else 1
    delta = sum(w * (m.double() - base.double()) for w, m in zip(v.weights, models, strict=True))
    return base.double() + v["lambda"] * delta / total


def passthrough(models, base, v):
    return models[0].double() * v.per_model["scale"][0]


def _sparse(models, base, v, kept, elect):
    """kept(k, magnitudes) -> indices kept of model k."""
    size = base.numel()
    taus = []
    for k, model in enumerate(models):
        tau = (flat(model) - flat(base)).tolist()
        keep = set(kept(k, [abs(x) for x in tau]))
        sparse = [x if i in keep else 0.0 for i, x in enumerate(tau)]
        after = sum(map(abs, sparse))
        if v["rescale"] and after > 0:
            sparse = [x * sum(map(abs, tau)) / after for x in sparse]
        taus.append(sparse)
    out = []
    for i in range(size):
        entries = [(v.weights[k] * taus[k][i], v.weights[k]) for k in range(len(models))]
        if elect:
            sign = 1 if sum(x for x, _ in entries) >= 0 else -1
            entries = [(x, w) for x, w in entries if x * sign > 0]
            divisor = sum(w for _, w in entries) or 1
        else:
            divisor = sum(v.weights)
        total = sum(x for x, _ in entries)
        out.append(v["lambda"] * (total / divisor if v["normalize"] else total))
    return base.double() + torch.tensor(out, dtype=torch.float64).reshape(base.shape)


def ties(models, base, v):
    def kept(k, magnitudes):
        return ranked(magnitudes)[: max(1, int(v.per_model["density"][k] * len(magnitudes)))]

    return _sparse(models, base, v, kept, elect=True)


def _crumbs(v):
    def kept(k, magnitudes):
        size = len(magnitudes)
        if v.per_model["density"][k] == 1:
            return range(size)
        count = max(1, int(v.per_model["density"][k] * size))
        first = min(int(v.per_model["gamma"][k] * size), size - count)
        return ranked(magnitudes)[first : first + count]

    return kept


def breadcrumbs(models, base, v):
    return _sparse(models, base, v, _crumbs(v), elect=False)


def breadcrumbs_ties(models, base, v):
    return _sparse(models, base, v, _crumbs(v), elect=True)


def _arc(x, y, t, straight_above):
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    cosine = np.clip(x @ y / norms, -1, 1) if norms > 0 else 0.0
    if abs(cosine) > straight_above:
        return (1 - t) * x + t * y
    phi = math.acos(cosine)
    return (math.sin((1 - t) * phi) * x + math.sin(t * phi) * y) / math.sin(phi)


def slerp(models, base, v):
    merged = _arc(flat(base).numpy(), flat(models[0]).numpy(), v["t"], 0.9995)
    return torch.from_numpy(merged).reshape(base.shape)


def nuslerp(models, base, v):
    origin = 0 if base is None else base.double()
    x, y = ((model.double() - origin).numpy() for model in models)
    t, near = v.weights[1] / sum(v.weights), 1 - 1e-12
    if v["nuslerp_flatten"] or x.ndim < 2:
        merged = _arc(x.reshape(-1), y.reshape(-1), t, near).reshape(x.shape)
    else:
        axis = 0 if v["nuslerp_row_wise"] else -1
        x, y = np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)
        merged = np.empty_like(x)
        for place in np.ndindex(*x.shape[:-1]):
            merged[place] = _arc(x[place], y[place], t, near)
        merged = np.moveaxis(merged, -1, axis)
    return torch.from_numpy(np.array(merged)) + origin


def multislerp(models, base, v):
    origin = 0 if base is None else base.double()
    xs = [model.double() - origin for model in models]
    total = sum(v.weights) if v["normalize_weights"] else 1
    weights = [w / total for w in v.weights]
    mean = sum(w * x / (x.norm() + v["eps"]) for w, x in zip(weights, xs, strict=True) if x.norm() > 0)
    length = sum(w * float(x.norm()) for w, x in zip(weights, xs, strict=True))
    if not isinstance(mean, torch.Tensor):
        return xs[0] * 0 + origin
    if mean.norm() < v["eps"]:  # two opposite ones
        return sum(w * x for w, x in zip(weights, xs, strict=True)) + origin
    return length * mean / mean.norm() + origin


def karcher(models, base, v):
    units = [m.double() / m.double().norm() for m in models if m.double().norm() > 0]
    if not units:
        return models[0].double()
    mean = sum(units)
    mean = mean / mean.norm() if mean.norm() / len(units) > 1e-9 else units[0]
    for _ in range(v["max_iter"]):
        logs = []
        for unit in units:
            angle = math.acos(max(-1.0, min(1.0, float((unit * mean).sum()))))
            away = unit - (unit * mean).sum() * mean
            logs.append(angle * away / away.norm() if v["tol"] <= angle < math.pi - 1e-6 else away * 0)
        tangent = sum(logs) / len(units)
        size = float(tangent.norm())
        if size < v["tol"]:
            break
        mean = math.cos(size) * mean + math.sin(size) * tangent / size
    return mean * sum(m.double().norm() for m in models) / len(models)


def nearswap(models, base, v):
    step = models[0].double() - base.double()
    return base.double() + step * (v["t"] / step.abs().clamp(min=1e-6)).clamp(max=1)


def model_stock(models, base, v):
    count = len(models)
    rows = base.double().reshape(base.shape[0] if v["filter_wise"] and base.ndim > 1 else 1, -1)
    out = rows.clone()
    for i, origin in enumerate(rows):
        taus = [model.double().reshape(rows.shape)[i] - origin for model in models]
        cosines = [float(a @ b / (a.norm() * b.norm())) if a.norm() * b.norm() > 0 else 0.0
                   for a, b in combinations(taus, 2)]  # fmt: skip
        cosine = sum(cosines) / len(cosines)
        below = 1 + (count - 1) * cosine
        ratio = count * cosine / below if abs(below) >= 1e-6 else 0.0
        out[i] = origin + ratio * sum(taus) / count
    return out.reshape(base.shape)


def sce(models, base, v):
    taus = torch.stack([flat(model) - flat(base) for model in models])
    if v["select_topk"] < 1:
        variance = taus.var(0, unbiased=False).tolist()
        count = int(sum(x > 0 for x in variance) * v["select_topk"])
        mask = torch.zeros(taus.shape[1], dtype=torch.float64)
        mask[ranked(variance)[:count]] = 1
        taus *= mask
    energy = taus.square().sum(1)
    weights = energy / energy.sum() if energy.sum() > 0 else torch.ones(len(models))
    out = flat(base)
    for i in range(len(out)):
        sign = 1 if taus[:, i].sum() >= 0 else -1
        agree = [(w, x) for w, x in zip(weights.tolist(), taus[:, i].tolist(), strict=True) if x * sign > 0]
        if agree:
            out[i] += sum(w * x for w, x in agree) / sum(w for w, _ in agree)
    return out.reshape(base.shape)


def ram(models, base, v, scales=None):
    taus = [(flat(model) - flat(base)).tolist() for model in models]
    out = flat(base)
    for i in range(len(out)):
        changed = [k for k, tau in enumerate(taus) if abs(tau[i]) > v["epsilon"]]
        if len(changed) == 1 and scales:
            out[i] += scales[changed[0]] * taus[changed[0]][i]
        elif changed:
            out[i] += sum(taus[k][i] for k in changed) / len(changed)
    return out.reshape(base.shape)


def ramplus_tl(models, base, v):
    changed = [(flat(model) - flat(base)).abs() > v["epsilon"] for model in models]
    total = sum(c.int() for c in changed)
    scales = []
    for c in changed:
        shared, alone = int((c & (total > 1)).sum()), int((c & (total == 1)).sum())
        scales.append(1 + v["r"] * min(v["alpha"], shared / max(alone, 1)))
    return ram(models, base, v, scales)


def arcee_fusion(models, base, v):
    p, q = (x.double().reshape(x.shape or (1,)).softmax(-1) + 1e-8 for x in (models[0], base))
    divergence = (p * (p / q).log()).sum(-1, keepdim=True)
    step = (models[0].double() - base.double()).reshape(p.shape)
    score = step.abs() * divergence
    rising = score.reshape(-1).sort().values
    low, middle, high = (rising[int(share * (len(rising) - 1))] for share in (0.25, 0.5, 0.75))
    return base.double() + (step * (score >= middle + 1.5 * (high - low))).reshape(base.shape)


def _matrix(tensor):
    return tensor.double().reshape(tensor.shape[0] if tensor.ndim else 1, -1)


def _mean(taus, base, v):
    return base.double() + v["lambda"] * (sum(taus) / len(taus)).reshape(base.shape)


def _tasks(models, base, v):
    return [w * (_matrix(model) - _matrix(base)) for w, model in zip(v.weights, models, strict=True)]


def tsv(models, base, v):
    taus = _tasks(models, base, v)
    if min(taus[0].shape) < 2:
        return _mean(taus, base, v)
    share = max(1, min(taus[0].shape) // len(taus))
    parts = [torch.linalg.svd(tau, full_matrices=False) for tau in taus]
    left = torch.cat([u[:, :share] for u, _, _ in parts], 1)
    singular = torch.cat([s[:share] for _, s, _ in parts])
    right = torch.cat([vh[:share] for _, _, vh in parts], 0).T
    p1, _, q1 = torch.linalg.svd(left, full_matrices=False)
    p2, _, q2 = torch.linalg.svd(right, full_matrices=False)
    merged = p1 @ q1 @ torch.diag(singular) @ (p2 @ q2).T
    return base.double() + v["lambda"] * merged.reshape(base.shape)


def iso_c(models, base, v):
    taus = _tasks(models, base, v)
    if min(taus[0].shape) < 2:
        return _mean(taus, base, v)
    u, s, vh = torch.linalg.svd(sum(taus), full_matrices=False)
    return base.double() + v["lambda"] * (s.mean() * u @ vh).reshape(base.shape)
