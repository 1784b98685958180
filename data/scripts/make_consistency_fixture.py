"""Small inputs and values of the metrics of ``scorefield consistency``, from NumPy's and SciPy's functions.

The metrics are those of ScoreMD (arXiv 2506.17139, section "Evaluation"): the Jensen-Shannon divergence of 2-D
histograms, the squared error of the potential of mean force, the divergence of pair distances, the 1-Wasserstein distance
and the divergence of transition matrices.

    python data/scripts/make_consistency_fixture.py [--out tests/data/consistency/fixture.json]
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance


def divergence(p, q):
    return jensenshannon(p, q) ** 2


def histogram_js(a, b, bins, limits):
    if limits is None:
        both = np.concatenate([a, b])
        limits = list(zip(both.min(axis=0), both.max(axis=0)))
    edges = [np.linspace(lo, hi, bins + 1) for lo, hi in limits]
    p, q = (np.histogram2d(x[:, 0], x[:, 1], bins=edges)[0].ravel() for x in (a, b))
    return divergence(p, q)


def pmf(a, b, bins, limits):
    def probabilities(x):
        i, j = (np.digitize(x[:, k], np.linspace(*limits[k], bins - 1)) for k in (0, 1))
        return np.bincount(i * bins + j, minlength=bins * bins) / len(x)

    p, q = probabilities(a), probabilities(b)
    seen = (p > 0) | (q > 0)
    p, q = (np.where(x[seen] > 0, x[seen], 1e-6) for x in (p, q))
    weight = (p + q) / np.sum(p + q)
    middle = (p + q) / 2
    integrand = (p * np.log(p / middle) + q * np.log(q / middle)) / (2 * middle)
    return np.sum(weight * (np.log(p) - np.log(q)) ** 2), np.sum(weight * integrand)


def pair_distances(a, b, offset):
    values = []
    for i in range(a.shape[1]):
        for j in range(i + offset, a.shape[1]):
            da, db = (np.linalg.norm(x[:, i] - x[:, j], axis=1) for x in (a, b))
            bins = int(max(da.max(), db.max()) / 0.1) + 1
            p, q = (np.histogram(d, bins=bins, range=(0, 0.1 * bins))[0] / len(d) + 1e-10 for d in (da, db))
            values.append(divergence(p, q))
    return np.mean(values)


def transition_matrix(path, centres):
    labels = np.argmin(((path[:, None] - centres[None]) ** 2).sum(axis=2), axis=1)
    counts = np.zeros((len(centres), len(centres)))
    np.add.at(counts, (labels[:-1], labels[1:]), 1)
    return counts / counts.sum(axis=1, keepdims=True)


def passage_times(matrix):
    n = len(matrix)
    times = np.zeros((n, n))
    for target in range(n):
        others = [i for i in range(n) if i != target]
        times[others, target] = np.linalg.solve(np.eye(n - 1) - matrix[np.ix_(others, others)], np.ones(n - 1))
    return times


def main():
    default = Path(__file__).resolve().parents[2] / "tests/data/consistency/fixture.json"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args().out
    random = np.random.default_rng(7)

    def path(n, shift):
        x = np.zeros((n, 2))
        for i in range(1, n):
            x[i] = 0.9 * x[i - 1] + 0.6 * random.normal(size=2) + 0.1 * shift
        return np.round(x, 6)

    def beads(n, spread):
        return np.round(np.arange(6)[None, :, None] * [0.12, 0.05, -0.03] + spread * random.normal(size=(n, 6, 3)), 6)

    a, b = path(300, 0.0), path(250, 0.5)
    x, y = beads(40, 0.04), beads(50, 0.06)
    centres = np.array([[-1.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    limits = [[-2.0, 2.5], [-3.0, 2.0]]
    p, q = transition_matrix(a, centres), transition_matrix(b, centres)
    error, weighted = pmf(a, b, 12, limits)
    fixture = {
        "a": a.tolist(),
        "b": b.tolist(),
        "beads_a": x.reshape(len(x), -1).tolist(),
        "beads_b": y.reshape(len(y), -1).tolist(),
        "centres": centres.tolist(),
        "limits": limits,
        "js_range_10": histogram_js(a, b, 10, None),
        "js_limits_10": histogram_js(a, b, 10, limits),
        "pmf_12": error,
        "mjs_12": weighted,
        "pairs_offset_1": pair_distances(x, y, 1),
        "pairs_offset_3": pair_distances(x, y, 3),
        "wasserstein_x": wasserstein_distance(a[:, 0], b[:, 0]),
        "transition_matrix_a": p.tolist(),
        "transition_js": divergence(p.ravel(), q.ravel()),
        "passage_times_a": passage_times(p).tolist(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(fixture) + "\n")


if __name__ == "__main__":
    main()
