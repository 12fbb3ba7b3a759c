"""Independent, obvious implementations to compare with: whole feature maps, float64, one sample at a time."""

import copy
import math

import numpy as np
import torch


def feature_maps(net, state, batches, layers):
    """Layer to features (samples, dim) in float64, and the logits: a loaded state dict, plain hooks."""
    net = copy.deepcopy(net)
    net.load_state_dict(state)
    net.eval()
    kept = {layer: [] for layer in layers}
    for layer in layers:
        if layer != "output":

            def keep(module, args, output, layer=layer):
                output = output[0] if isinstance(output, tuple) else output
                kept[layer].append(output.detach().clone().double().reshape(len(output), -1))

            net.get_submodule(layer).register_forward_hook(keep)
    outputs = []
    with torch.no_grad():
        for batch in batches:
            out = net(batch[0])
            outputs.append(out.double())
            if "output" in kept:
                kept["output"].append(out.double().reshape(len(out), -1))
    return {layer: torch.cat(parts).numpy() for layer, parts in kept.items()}, torch.cat(outputs).numpy()


def cosine(u, v):
    return float(u @ v) / (math.sqrt(u @ u) * math.sqrt(v @ v))


def measures(m, rights, coefficients, reference=None):
    """Every measure of a linearity test for one sample, straight from its definition."""
    r = sum(c * f for c, f in zip(coefficients, rights, strict=True))
    out = {
        "cos": cosine(m, r),
        "coef": float(m @ r) / float(r @ r),
        "gap": float(np.linalg.norm(m - r) / np.linalg.norm(r)),
    }
    pairs = [(f, g) for i, f in enumerate(rights) for g in rights[i + 1 :]]
    if pairs:
        spread = math.sqrt(np.mean([np.sum((f - g) ** 2) for f, g in pairs]))
        out["gap_between"] = float(np.linalg.norm(m - r)) / spread
        out["baseline"] = float(np.mean([cosine(f, g) for f, g in pairs]))
    if reference is not None:
        shifted = measures(m - reference, [f - reference for f in rights], coefficients)
        out |= {f"{name}_rel": shifted[name] for name in ("cos", "coef", "gap")}
    return out


def loss_and_hit(logits, label):
    """Cross-entropy and correctness of one sample."""
    return math.log(np.exp(logits).sum()) - logits[label], float(int(np.argmax(logits)) == label)
