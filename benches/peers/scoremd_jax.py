"""Time ScoreMD's graph transformer in JAX: Langevin steps and training steps.

    taskset -c 3 VENV/bin/python benches/peers/scoremd_jax.py --system alanine-dipeptide --batch 1 16 128

The network is written here from its published equations (ScoreMD, arXiv
2506.17139), with made-up weights: speed does not depend on them.  `edges`
keeps keys and values per pair of beads, as the published program does;
`edge-free` is the same function with the pair terms taken out of the softmax
(a key is k_j + M x_j, and M x_i leaves at the end).  The first is what users
run today, the second the best that JAX makes of the same algebra.

One line of JSON per measurement: seconds to compile, and the best and median
seconds per call after that.
"""

import argparse
import json
import os
import statistics
import time

SYSTEMS = {"alanine-dipeptide": (5, 96, 2), "chignolin": (10, 128, 3), "bba": (28, 128, 3)}
HEADS, HEAD_WIDTH = 8, 64
INNER = HEADS * HEAD_WIDTH


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", choices=SYSTEMS, default="alanine-dipeptide")
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 16, 128], help="replicas that move at once")
    parser.add_argument("--form", nargs="+", choices=("edges", "edge-free"), default=["edges", "edge-free"])
    parser.add_argument("--train", nargs="*", choices=("dsm", "fokker-planck"), default=[], help="training steps too")
    parser.add_argument("--train-batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=2.0, help="time of each measurement")
    parser.add_argument("--check", action="store_true", help="compare both forms of the network and stop")
    return parser.parse_args()


arguments = parse()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax  # noqa: E402  (the flags above are read at import)
import jax.numpy as jnp  # noqa: E402


def parameters(key, beads, width, layers):
    """Weights of a potential, as a tree."""
    count = iter(range(10_000))

    def dense(inputs, outputs, bias=True):
        k = jax.random.fold_in(key, next(count))
        tree = {"w": jax.random.normal(k, (inputs, outputs)) * inputs**-0.5}
        return {**tree, "b": 0.1 * jax.random.normal(jax.random.fold_in(k, 1), (outputs,))} if bias else tree

    norm = lambda: {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
    layer = lambda: {
        "norm": norm(),
        **{name: dense(width, INNER) for name in ("q", "k", "v", "edge")},
        "out": dense(INNER, width),
        "gate": dense(3 * width, 1, bias=False),
        "norm2": norm(),
        "up": dense(width, 4 * width),
        "down": dense(4 * width, width),
        "gate2": dense(3 * width, 1, bias=False),
    }
    return {
        "nodes": dense(beads + 4, width),
        "edges": dense(3, width),
        "layers": [layer() for _ in range(layers)],
        "head": dense(width, 1),
    }


def dense(p, x):
    return x @ p["w"] + p["b"] if "b" in p else x @ p["w"]


def norm(p, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * p["scale"] + p["bias"]


def gated(p, x, residual):
    g = jax.nn.sigmoid(dense(p, jnp.concatenate([x, residual, x - residual], -1)))
    return g * x + (1 - g) * residual


def split(x):
    return x.reshape(*x.shape[:-1], HEADS, HEAD_WIDTH)


def attend_edges(p, first, y, x):
    """Keys and values [N, N, heads, 64], one per pair."""
    q, k, v = (split(dense(p[name], y)) for name in ("q", "k", "v"))
    e = split(dense(p["edge"], dense(first, x[None, :, :] - x[:, None, :])))
    k, v = k[None] + e, v[None] + e
    a = jax.nn.softmax(jnp.einsum("ihd,ijhd->hij", q, k) * HEAD_WIDTH**-0.5, -1)
    return jnp.einsum("hij,ijhd->ihd", a, v)


def attend_edge_free(p, first, y, x):
    """The same with keys k_j + M x_j."""
    q, k, v = (split(dense(p[name], y)) for name in ("q", "k", "v"))
    m = first["w"] @ p["edge"]["w"]
    c = first["b"] @ p["edge"]["w"] + p["edge"]["b"]
    at = split(x @ m)
    k, v = k + at, v + at
    a = jax.nn.softmax(jnp.einsum("ihd,jhd->hij", q, k) * HEAD_WIDTH**-0.5, -1)
    return jnp.einsum("hij,jhd->ihd", a, v) + split(c) - at


def energy(attend, p, x, t):
    """Energy in kT of the beads x [N, 3] at time t."""
    beads = x.shape[0]
    x = x - x.mean(0)
    times = jnp.stack([t - 0.5, jnp.cos(2 * jnp.pi * t), jnp.sin(2 * jnp.pi * t), -jnp.cos(4 * jnp.pi * t)])
    nodes = dense(p["nodes"], jnp.concatenate([jnp.eye(beads), jnp.broadcast_to(times, (beads, 4))], -1))
    for layer in p["layers"]:
        out = attend(layer, p["edges"], norm(layer["norm"], nodes), x).reshape(beads, INNER)
        nodes = gated(layer["gate"], dense(layer["out"], out), nodes)
        hidden = jax.nn.gelu(dense(layer["up"], norm(layer["norm2"], nodes)))
        nodes = gated(layer["gate2"], dense(layer["down"], hidden), nodes)
    return dense(p["head"], nodes).sum()


def langevin(attend, p, state, key):
    """One step of the published integrator for a batch [B, N, 3] in reduced units."""
    x, v = state
    force = jax.vmap(lambda x: -jax.grad(energy, 2)(attend, p, x, jnp.float32(1e-5)))(x)
    dt, a = 2e-3, 0.998
    v = a * v + (1 - a) * force / 12.0 + (2.49 * (1 - a * a) / 12.0) ** 0.5 * jax.random.normal(key, x.shape)
    return x + dt * v, v


BETA0, BETA1 = 0.1, 20.0


def noise_level(t):
    lm = -0.5 * BETA0 * t - 0.25 * (BETA1 - BETA0) * t * t
    return jnp.exp(lm), jnp.sqrt(-jnp.expm1(2 * lm))


def loss(attend, p, x0, t, eps, probes, fokker_planck):
    """Denoising score matching, with the weak Fokker–Planck residual where asked."""
    log_q = lambda x, t: -energy(attend, p, x, t)
    score = lambda x, t: jax.grad(log_q)(x, t)

    def one(x0, t, eps, probes):
        m, s = noise_level(t)
        x = m * x0 + s * eps
        dsm = jnp.mean((eps + s * score(x, t)) ** 2)
        if not fokker_planck:
            return dsm
        beta, size, d = BETA0 + t * (BETA1 - BETA0), 1e-4, x.size
        forward, back = 5e-4, 1e-3

        def residual(z):
            up, down = score(x + size * z, t), score(x - size * z, t)
            y = x + size * z
            slope = (back**2 * log_q(y, t + forward) + (forward**2 - back**2) * log_q(y, t) - forward**2 * log_q(y, t - back)) / (
                back * forward * (back + forward)
            )
            divergence = (z * (up - down)).sum() / (2 * size)
            return 0.5 * beta * (divergence + (up * up).sum() + (y * up).sum() + d) - slope

        return dsm + 5e-4 * residual(probes[0]) * residual(probes[1]) / d**2

    return jax.vmap(one)(x0, t, eps, probes).mean()


def clock(call, seconds):
    """Seconds of compilation, best and median of the calls that follow."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    compile_s, times, end = time.perf_counter() - start, [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return {"compile_s": compile_s, "best_s": min(times), "median_s": statistics.median(times), "calls": len(times)}


def main():
    beads, width, layers = SYSTEMS[arguments.system]
    p = parameters(jax.random.PRNGKey(0), beads, width, layers)
    size = sum(leaf.size for leaf in jax.tree.leaves(p))
    forms = {"edges": attend_edges, "edge-free": attend_edge_free}
    if arguments.check:
        x = jax.random.normal(jax.random.PRNGKey(1), (beads, 3))
        a, b = (jax.grad(energy, 2)(f, p, x, jnp.float32(0.3)) for f in forms.values())
        print(json.dumps({"parameters": size, "relative_difference": float(jnp.abs(a - b).max() / jnp.abs(a).max())}))
        return
    common = {"system": arguments.system, "jax": jax.__version__, "parameters": size}
    for form in arguments.form:
        attend = forms[form]
        for batch in arguments.batch:
            # Ten steps a call, so that calling costs little; more would compile for minutes where they are unrolled.
            run = jax.jit(lambda x, v, key: jax.lax.scan(
                lambda s, k: (langevin(attend, p, s, k), None), (x, v), jax.random.split(key, 10))[0])
            x = jax.random.normal(jax.random.PRNGKey(2), (batch, beads, 3))
            result = clock(lambda: run(x, jnp.zeros_like(x), jax.random.PRNGKey(3)), arguments.seconds)
            per = {k: result[k] / (10 * batch) for k in ("best_s", "median_s")}
            print(json.dumps({**common, "what": "step", "form": form, "batch": batch, **result, **per}), flush=True)
        for kind in arguments.train:
            n = arguments.train_batch
            draw = lambda i, *shape: jax.random.normal(jax.random.PRNGKey(i), shape)
            t = jax.random.uniform(jax.random.PRNGKey(9), (n,), minval=0.002, maxval=0.998)
            data = (draw(4, n, beads, 3), t, draw(5, n, beads, 3), draw(6, n, 2, beads, 3))
            gradient = jax.jit(jax.value_and_grad(lambda p, *d: loss(attend, p, *d, kind == "fokker-planck")))
            result = clock(lambda: gradient(p, *data), arguments.seconds)
            print(json.dumps({**common, "what": kind, "form": form, "batch": n, **result}), flush=True)


main()
