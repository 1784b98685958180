"""Time DiTMC's aPE network of the base size in JAX: predictions of a batch of conformers of one molecule.

    taskset -c 3 VENV/bin/python benches/peers/ditmc_jax.py --graph graph.json --batch 16

The network is written here from its published equations (arXiv 2506.15378), with made-up weights: speed does not depend on them.  `pairs`
sends the token of every pair of every structure through the dense layers, as the published program does; `tables` is the same function
with the layers applied to one token per number of bonds, and what depends on the graph alone computed once.  The first is what
users run today, the second the best that JAX makes of the same algebra.

The graph is a JSON file: `atoms` (atomic numbers), `hops` (bonds between each two atoms).  One line of JSON per measurement: seconds to
compile, and the best and median seconds and the CPU seconds per call after that.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

F, HEADS, BLOCKS, NODE_FEATURES, BOND_FEATURES = 256, 8, 6, 94, 4


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=16, help="conformers at once")
    parser.add_argument("--form", nargs="+", choices=("pairs", "tables"), default=["pairs", "tables"])
    parser.add_argument("--seconds", type=float, default=5.0, help="time of each measurement")
    parser.add_argument("--check", action="store_true", help="compare both forms of the network and stop")
    return parser.parse_args()


arguments = parse()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax  # noqa: E402  (the flags above are read at import)
import jax.numpy as jnp  # noqa: E402


def parameters(key):
    """Weights as a tree; none is zero."""
    count = iter(range(10_000))
    normal = lambda *shape: jax.random.normal(jax.random.fold_in(key, next(count)), shape)

    def dense(inputs, outputs, bias=True):
        tree = {"w": normal(inputs, outputs) * inputs**-0.5}
        return {**tree, "b": 0.1 * normal(outputs)} if bias else tree

    mlp = lambda inputs, hidden=F, outputs=F, bias=True: [dense(inputs, hidden, bias), dense(hidden, outputs, bias)]
    norm = lambda width: {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
    layer = lambda: {"edge_norm": norm(3 * F), "edge": mlp(3 * F), "node_norm": norm(2 * F), "node": mlp(2 * F)}
    block = lambda: {
        "norm": norm(F),
        "modulation": dense(F, 6 * F),
        **{name: dense(F, F, bias=False) for name in ("q", "k", "v", "relative", "filter")},
        "kappa": normal(F),
        "out": dense(F, F),
        "mlp": mlp(F, 4 * F),
    }
    return {
        "nodes": mlp(NODE_FEATURES), "node_norm": norm(F), "edges": mlp(BOND_FEATURES), "edge_norm": norm(F),
        "layers": [layer() for _ in range(2)],
        "frequencies": normal(F // 4), "time": mlp(F // 2),
        "types": normal(119, F) * F**-0.5, "hops": normal(512, F) * F**-0.5, "hop": mlp(F),
        "position": mlp(3, bias=False),
        "blocks": [block() for _ in range(BLOCKS)],
        "readout_modulation": dense(F, 2 * F), "readout": dense(F, 6),
    }


def dense(p, x):
    return x @ p["w"] + p["b"] if "b" in p else x @ p["w"]


def mlp(p, x, curve=jax.nn.silu):
    return dense(p[1], curve(dense(p[0], x)))


def plain_norm(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6)


def norm(p, x):
    return plain_norm(x) * p["scale"] + p["bias"]


def condition(p, graph):
    """Tokens of the atoms [N, F] from the graph."""
    h, e = norm(p["node_norm"], mlp(p["nodes"], graph["nodes"])), norm(p["edge_norm"], mlp(p["edges"], graph["bonds"]))
    senders, receivers = graph["senders"], graph["receivers"]
    for layer in p["layers"]:
        e = mlp(layer["edge"], norm(layer["edge_norm"], jnp.concatenate([h[senders], h[receivers], e], -1)))
        sums = jax.ops.segment_sum(e, receivers, h.shape[0])
        h = mlp(layer["node"], norm(layer["node_norm"], jnp.concatenate([h, sums], -1)))
    return h


def time_token(p, t):
    turn = 2 * jnp.pi * p["frequencies"] * t
    return mlp(p["time"], jnp.stack([jnp.cos(turn), jnp.sin(turn)], -1).reshape(-1))


def transformer(p, types, c, x, relative, filters):
    """Clean positions [N, 3]; relative and filters are functions of the block that give [N, N, F]."""
    n, mask = x.shape[0], jnp.eye(x.shape[0], dtype=bool)
    heads = lambda y: y.reshape(*y.shape[:-1], HEADS, F // HEADS)
    h = p["types"][types] + mlp(p["position"], x)
    for block_index, b in enumerate(p["blocks"]):
        g1, b1, a1, g2, b2, a2 = jnp.split(dense(b["modulation"], jax.nn.silu(norm(b["norm"], c))), 6, -1)
        y = plain_norm(h) * (1 + g1) + b1
        q, k, v = dense(b["q"], y) * (F // HEADS) ** -0.5, dense(b["k"], y), dense(b["v"], y)
        logits = (q[:, None] * k[None] * relative(block_index)).reshape(n, n, HEADS, F // HEADS).sum(-1)
        w = jax.nn.softmax(jnp.where(mask[..., None], -1e30, logits), axis=1)
        o = jnp.einsum("ijh,jhd,ijhd->ihd", w, heads(v), heads(filters(block_index))).reshape(n, F) * b["kappa"]
        h = h + a1 * dense(b["out"], o)
        h = h + a2 * mlp(b["mlp"], plain_norm(h) * (1 + g2) + b2, jax.nn.gelu)
    shift, scale = jnp.split(jax.nn.silu(dense(p["readout_modulation"], c)), 2, -1)
    out = dense(p["readout"], plain_norm(h) * (1 + scale) + shift)[:, :3]
    return out - out.mean(0)


def by_pairs(p, graph, x, t):
    """Everything for every structure x [B, N, 3], as the published program computes it."""

    def one(x, hops, t):
        c = condition(p, graph) + time_token(p, t)
        u = mlp(p["hop"], p["hops"][hops])
        maps = lambda name: lambda k: dense(p["blocks"][k][name], u)
        return transformer(p, graph["types"], c, x, maps("relative"), maps("filter"))

    hops = jnp.broadcast_to(graph["hops"], (x.shape[0], *graph["hops"].shape))
    return jax.vmap(one)(x, hops, jnp.broadcast_to(t, x.shape[0]))


def tables(p, graph):
    """What depends on the graph alone."""
    u = mlp(p["hop"], p["hops"][: int(graph["hops"].max()) + 1])
    maps = [(dense(b["relative"], u)[graph["hops"]], dense(b["filter"], u)[graph["hops"]]) for b in p["blocks"]]
    return condition(p, graph), maps


def by_tables(p, graph, prepared, x, t):
    tokens, maps = prepared
    c = tokens + time_token(p, t)
    one = lambda x: transformer(p, graph["types"], c, x, lambda k: maps[k][0], lambda k: maps[k][1])
    return jax.vmap(one)(x)


def clock(call, seconds):
    """Seconds of compilation, best and median of the calls that follow, and the CPU seconds of one."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    compile_s, times, end, used = time.perf_counter() - start, [], time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    cpu_s = (time.process_time() - used) / len(times)
    return {"compile_s": compile_s, "cpu_s": cpu_s, "best_s": min(times), "median_s": statistics.median(times), "calls": len(times)}


def main():
    p = parameters(jax.random.PRNGKey(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(p))
    described = json.loads(arguments.graph.read_text())
    hops = jnp.array(described["hops"])
    atoms = jnp.array(described["atoms"])
    receivers, senders = jnp.where(hops == 1)
    kind = jax.random.bernoulli(jax.random.PRNGKey(1), 0.2, (len(atoms), NODE_FEATURES)).astype(jnp.float32)
    graph = {"types": atoms, "nodes": kind, "bonds": jnp.eye(BOND_FEATURES)[jnp.zeros(len(senders), int)],
             "senders": senders, "receivers": receivers, "hops": hops}
    prepared = jax.block_until_ready(tables(p, graph))
    x = jax.random.normal(jax.random.PRNGKey(2), (arguments.batch, len(atoms), 3))
    forms = {
        "pairs": jax.jit(lambda p, x, t, prepared: by_pairs(p, graph, x, t)),
        "tables": jax.jit(lambda p, x, t, prepared: by_tables(p, graph, prepared, x, t)),
    }
    t = jnp.float32(0.4)
    if arguments.check:
        a, b = (f(p, x, t, prepared) for f in forms.values())
        print(json.dumps({"parameters": size, "relative_difference": float(jnp.abs(a - b).max() / jnp.abs(a).max())}))
        return
    for form in arguments.form:
        result = clock(lambda: forms[form](p, x, t, prepared), arguments.seconds)
        row = {"form": form, "atoms": len(atoms), "batch": arguments.batch, "parameters": size, "jax": jax.__version__, **result}
        print(json.dumps(row), flush=True)


main()
