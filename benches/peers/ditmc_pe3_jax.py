"""DiTMC's PE(3) network in JAX: predictions of a batch of conformers of one molecule, timed, or compared with another program's.

    VENV/bin/python benches/peers/ditmc_pe3_jax.py --write model.safetensors
    taskset -c 3 VENV/bin/python benches/peers/ditmc_pe3_jax.py --weights model.safetensors --graph graph.json --batch 16

The network is written here from its published equations (arXiv 2506.15378; degree 1, two parities, 64 reciprocal Bernstein functions) and
reads files of scorefield's.  `--write` makes one up at the base size, in which no weight is zero: speed does not depend on them.  Three forms
compute the same function.  `literal` has the structure of the published program: gates and dense layers of every pair of every structure,
filters with the components of their harmonics, messages of pairs as tensor products of filters and weighted values, contracted in every
channel with Clebsch-Gordan coefficients times the weight of each path, the whole batch at once.  `unrolled` is the same, structure by
structure and without the coefficients that are zero.  In `factored`, what depends on the graph alone is computed once, gates by the number of
bonds; filters are scalars, harmonics and values are multiplied in the sums over senders only, and those sums, not pairs, get the weights of
paths.  The first is what users run today, the last the best that JAX makes of the same algebra.

The graph is a JSON file of `ditmc.py`; one line of JSON per measurement, as from `ditmc_jax.py`.  `--check` compares all forms with
the predictions in a JSON file, `--authors` with those of the published program, `--double` computes in double precision.
"""

import argparse
import json
import os
import statistics
import struct
import time
from math import comb, log, pi, prod, sqrt
from pathlib import Path

import numpy as np

RADIAL, PAIR, HOPS, TYPES, BONDS = 64, 128, 512, 119, 4
BASE = {
    "variant": "pe3", "blocks": 6, "heads": 8, "head-width": 32, "expansion": 4, "conditioner-layers": 2,
    "pair-tokens": "all-pairs", "vocabulary": "drugs",
}
BASE_PARAMETERS = 27_165_504
# Elements of the vocabulary of drugs.
DRUGS = [1, 3, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 20, 23, 24, 25, 29, 30, 31, 32, 33, 34, 35, 47, 49, 51, 53, 64, 78, 79, 80, 83]
IRREPS = {(0, 0): "0+", (0, 1): "1+", (1, 0): "0-", (1, 1): "1-"}  # by parity and degree
FORMS = ("literal", "unrolled", "factored")
SLICES = (slice(0, 1), slice(1, 4))  # components of degrees 0 and 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="make up weights of the base size and stop")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--graph", type=Path)
    parser.add_argument("--batch", type=int, default=16, help="conformers at once")
    parser.add_argument("--form", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--seconds", type=float, default=5.0, help="time of each measurement")
    parser.add_argument("--check", type=Path, help="JSON with lists of `t`, `x` and `clean` (Å): compare and stop")
    parser.add_argument("--authors", type=Path, help="tensors of the authors' code and its weights: compare and stop")
    parser.add_argument("--double", action="store_true")
    return parser.parse_args()


arguments = parse()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_ENABLE_X64", "1" if arguments.double else "0")

import jax  # noqa: E402  (the flags above are read at import)
import jax.numpy as jnp  # noqa: E402


def shapes(network, elements):
    """Name and shape of every parameter."""
    f = network["heads"] * network["head-width"]
    out = {}

    def dense(name, inputs, outputs, bias=True):
        out[f"{name}.kernel"] = (inputs, outputs)
        if bias:
            out[f"{name}.bias"] = (outputs,)

    def mlp(name, inputs, hidden, outputs, bias=True):
        dense(f"{name}.Dense_0", inputs, hidden, bias)
        dense(f"{name}.Dense_1", hidden, outputs, bias)

    def norm(name, width):
        out[f"{name}.scale"] = out[f"{name}.bias"] = (width,)

    for name, width in ("node", 59 + elements), ("edge", BONDS):
        mlp(f"conditioner.{name}_embedding.MLP_0", width, f, f)
        norm(f"conditioner.{name}_embedding.LayerNorm_0", f)
    for k in range(network["conditioner-layers"]):
        for part, width in enumerate((3 * f, 2 * f)):
            norm(f"conditioner.layers_{k}.LayerNorm_{part}", width)
            mlp(f"conditioner.layers_{k}.MLP_{part}", width, f, f)
    out["time_embedding.GaussianRandomFourierFeatures_0.b"] = (1, f // 4)
    mlp("time_embedding.MLP_0", f // 2, f, f)
    out["node_embedding.Embed_0.embedding"] = (TYPES, f)
    out["edge_embedding.Embed_0.embedding"] = (HOPS, PAIR)
    mlp("edge_embedding.MLP_0", PAIR, PAIR, 2 * RADIAL, bias=False)
    for k in range(network["blocks"]):
        # The first block reads scalars and makes messages of one parity.
        parities, degrees = (1, 1) if k == 0 else (2, 2)
        inputs = [IRREPS[p, l] for p in range(parities) for l in range(degrees)]
        name, wide = f"layers_{k}_encoder", network["expansion"] * f
        attention = f"{name}.SelfAttention_0"
        norm(f"{name}.LayerNorm_0", f)
        dense(f"{name}.Dense_0", f, (len(inputs) + 14) * f)
        for irrep in inputs:
            for part in "query", "key", "value":
                dense(f"{attention}.{part}.{irrep}", f, f, bias=False)
        dense(f"{attention}.relative_positional_encoding", RADIAL, len(inputs) * f, bias=False)
        for irrep in "0+", "1-":
            dense(f"{attention}.filter.{irrep}", RADIAL, f, bias=False)
        out[f"{attention}.tensor.kernel"] = (1, 2, parities, degrees, parities, 2, f)
        for irrep in ("0+", "1-") if k == 0 else IRREPS.values():
            dense(f"{attention}.out.{irrep}", f, f, bias=irrep == "0+")
        for irrep in IRREPS.values():
            dense(f"{name}.E3MLP_0.Dense_0.{irrep}", f, wide, bias=irrep == "0+")
            dense(f"{name}.E3MLP_0.Dense_1.{irrep}", wide, f, bias=irrep == "0+")
    norm("readout.LayerNorm_0", f)
    dense("readout.Dense_0", f, 3 * f)
    dense("readout.Dense_1", f, 2, bias=False)
    return out


def write(path):
    """A file of made-up weights of the base size; their path has a Gaussian prior, so that scorefield asks it at any time."""
    names, rng = shapes(BASE, len(DRUGS)), np.random.default_rng(0)
    assert sum(map(prod, names.values())) == BASE_PARAMETERS
    header = {"__metadata__": {
        "scorefield": "1", "architecture": "ditmc", "parameters": json.dumps({"network": BASE}), "prediction": "clean", "units": "si",
        "ensemble": "minima", "scale": "10", "types": json.dumps(DRUGS), "command": "made up", "seed": "0",
        "noise": json.dumps({"prior": "gaussian", "noise": 0.5, "aligned": False}),
    }}
    parts, at = [], 0
    for name, shape in names.items():
        values = rng.standard_normal(shape)
        if name.endswith("tensor.kernel"):
            values *= 0.6
        elif len(shape) == 2 and not name.endswith("Features_0.b"):
            values *= shape[1 if "Embed" in name else 0] ** -0.5
        elif name.endswith("bias"):
            values *= 0.1
        elif name.endswith("scale"):
            values = 1 + 0.1 * values
        parts.append(values.astype("<f4").tobytes())
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(parts[-1])]}
        at += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(b"".join([struct.pack("<Q", len(text)), text, *parts]))


def read(path):
    """Tensors by name and metadata of a file of weights."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__")
    kinds = {"F32": "<f4", "F64": "<f8", "I32": "<i4"}
    array = lambda e: np.frombuffer(data[start + e["data_offsets"][0]:start + e["data_offsets"][1]], kinds[e["dtype"]]).reshape(e["shape"])
    return {name: array(e) for name, e in header.items()}, metadata


class Network:
    """Sizes, and the functions of parameters `p` (by name) that both forms share.  Features are [N, parity, 4, F]."""

    def __init__(self, heads, blocks):
        self.heads, self.blocks = heads, blocks
        # Clebsch-Gordan coefficients [filter, value, message] of components 1, x, y, z: 1, dot/sqrt 3, cross/sqrt 2.
        cg = np.zeros((4, 4, 4))
        cg[0] = np.eye(4)
        cg[1:, 0, 1:] = np.eye(3)
        cg[1:, 1:, 0] = np.eye(3) / sqrt(3)
        for a in range(3):
            b, c = (a + 1) % 3 + 1, (a + 2) % 3 + 1
            cg[b, c, a + 1], cg[c, b, a + 1] = 1 / sqrt(2), -1 / sqrt(2)
        self.cg = cg

    def condition(self, p, graph):
        """Tokens of the atoms [N, F] from the graph."""
        embed = lambda name, x: norm(p, f"conditioner.{name}_embedding.LayerNorm_0", mlp(p, f"conditioner.{name}_embedding.MLP_0", x))
        h, e = embed("node", graph["nodes"]), embed("edge", graph["bonds"])
        senders, receivers = graph["senders"], graph["receivers"]
        k = 0
        while (name := f"conditioner.layers_{k}") + ".MLP_0.Dense_0.bias" in p:
            e = mlp(p, f"{name}.MLP_0", norm(p, f"{name}.LayerNorm_0", jnp.concatenate([h[senders], h[receivers], e], -1)))
            sums = jax.ops.segment_sum(e, receivers, h.shape[0])
            h = mlp(p, f"{name}.MLP_1", norm(p, f"{name}.LayerNorm_1", jnp.concatenate([h, sums], -1)))
            k += 1
        return h

    def time_token(self, p, t):
        turn = 2 * jnp.pi * p["time_embedding.GaussianRandomFourierFeatures_0.b"][0] * t
        return mlp(p, "time_embedding.MLP_0", jnp.stack([jnp.cos(turn), jnp.sin(turn)], -1).reshape(-1))

    def gate(self, p, rows):
        """Gates [..., degree, RADIAL] of rows of the embedding of hops."""
        return mlp(p, "edge_embedding.MLP_0", rows).reshape(*rows.shape[:-1], 2, RADIAL)

    def transformer(self, p, types, c, messages):
        """Clean positions [N, 3]; `messages(block, q, k, v)` are those of a block's attention."""
        n, f = c.shape
        h = p["node_embedding.Embed_0.embedding"][types][:, None, None]
        for index in range(self.blocks):
            name = f"layers_{index}_encoder"
            attention = f"{name}.SelfAttention_0"
            m = dense(p, f"{name}.Dense_0", jax.nn.silu(norm(p, f"{name}.LayerNorm_0", c)))
            parities, degrees = (1, 1) if index == 0 else (2, 2)
            sizes = [parities * degrees, 1, 4, 4, 1, 4]
            g1, b1, a1, g2, b2, a2 = jnp.split(m, np.cumsum(sizes)[:-1] * f, -1)
            y = modulate(h, g1.reshape(n, parities, degrees, f), b1)
            q, k, v = (irreps(p, f"{attention}.{part}", y) for part in ("query", "key", "value"))
            o = messages(index, q * (parities * degrees**2 * f // self.heads) ** -0.5, k, v)
            # Messages of one parity go to both; features of one parity and degree are the even scalars.
            h = jnp.pad(h, ((0, 0), (0, 2 - parities), (0, 4 - degrees**2), (0, 0)))
            h = h + components(a1.reshape(n, 2, 2, f)) * irreps(p, f"{attention}.out", o, proper=index == 0)
            y = irreps(p, f"{name}.E3MLP_0.Dense_0", modulate(h, g2.reshape(n, 2, 2, f), b2))
            y = irreps(p, f"{name}.E3MLP_0.Dense_1", y * opening(y[:, :1, :1]))
            h = h + components(a2.reshape(n, 2, 2, f)) * y
        scale = jax.nn.silu(dense(p, "readout.Dense_0", norm(p, "readout.LayerNorm_0", c)))[:, f:2 * f]
        y = vector_norm((h[:, 0] + h[:, 1])[:, 1:]) * (1 + scale[:, None])
        out = (y @ p["readout.Dense_1.kernel"])[..., 0]
        return out - out.mean(0)

    def weights(self, logits):
        """Softmax over all other atoms of logits [N, N, ..., F] summed over the channels of each head: [N, N, H]."""
        n, f = logits.shape[0], logits.shape[-1]
        logits = logits.reshape(n, n, f // self.heads, self.heads).sum(2)
        return jax.nn.softmax(jnp.where(jnp.eye(n, dtype=bool)[..., None], -1e30, logits), axis=1)

    def coupling(self, p, index):
        """Coefficients [filter 4, parity, value 4, parity, message 4, F], of each path its weight times Clebsch-Gordan, and where there are any."""
        kappa = p[f"layers_{index}_encoder.SelfAttention_0.tensor.kernel"][0]
        _, parities, degrees, _, _, f = kappa.shape
        out, present = jnp.zeros((4, parities, degrees**2, parities, 4, f), kappa.dtype), []
        for l, a, m, n in np.ndindex(2, parities, degrees, 2):
            # Filters have the parity of their degree; where there is one parity it has one place.
            b = (a + l) % 2 if parities == 2 else 0
            at = (SLICES[l], a, SLICES[m], b, SLICES[n])
            cg = self.cg[SLICES[l], SLICES[m], SLICES[n]]
            out = out.at[at].set(cg[..., None] * kappa[l, a, m, b, n])
            present += [(l + i, a, m + j, b, n + k) for i, j, k in zip(*np.nonzero(cg))]
        return out, present


def dense(p, name, x):
    y = x @ p[f"{name}.kernel"]
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def mlp(p, name, x):
    return dense(p, f"{name}.Dense_1", jax.nn.silu(dense(p, f"{name}.Dense_0", x)))


def plain_norm(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6)


def norm(p, name, x):
    return plain_norm(x) * p[f"{name}.scale"] + p[f"{name}.bias"]


def vector_norm(x):
    """[..., components, F] over the standard deviation, over channels, of the norms."""
    square = (x * x).sum(-2, keepdims=True)
    size = jnp.where(square > 1e-6, jnp.sqrt(jnp.where(square > 1e-6, square, 1)), 0)
    return x * jax.lax.rsqrt(size.var(-1, keepdims=True) + 1e-6)


def components(x):
    """[..., degree, F] for each component of the degrees."""
    return x[..., np.array([0, 1, 1, 1])[:x.shape[-2] ** 2], :]


def modulate(x, scale, shift):
    """Norm of features, scale of each irrep, and shift of even scalars."""
    parities, degrees = scale.shape[1:3]
    rows = []
    for a in range(parities):
        parts = [plain_norm(x[:, a, :1]) if a == 0 else vector_norm(x[:, a, :1])]
        parts += [vector_norm(x[:, a, SLICES[1]])] if degrees == 2 else []
        rows.append(jnp.concatenate(parts, 1))
    return (jnp.stack(rows, 1) * (1 + components(scale))).at[:, 0, 0].add(shift)


def irreps(p, name, x, proper=False):
    """A dense layer for each irrep; `proper`: there is one parity, that of the degree."""
    rows = []
    for a in range(x.shape[1]):
        parts = [dense(p, f"{name}.{IRREPS[l if proper else a, l]}", x[:, a, SLICES[l]]) for l in range(1 if x.shape[2] == 1 else 2)]
        rows.append(jnp.concatenate(parts, 1))
    return jnp.stack(rows, 1)


def opening(x):
    """What scalars open their channel's features by, so that a scalar times it is GELU (tanh)."""
    return 0.5 * (1 + jnp.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))


def radial(r):
    """Reciprocal Bernstein functions [..., RADIAL] of distances (Å), in logarithms."""
    k = np.arange(RADIAL)
    binomials = np.array([log(comb(RADIAL - 1, int(i))) for i in k])
    r = r[..., None]
    return jnp.exp(binomials + k * jnp.log(r) - (RADIAL - 1) * jnp.log1p(r))


def displacements(x):
    """Distances [N, N] and directions [N, N, 3] from receivers to senders; those of an atom from itself, which nobody uses, are made up."""
    d = x[None] - x[:, None]
    r = jnp.sqrt((d * d).sum(-1) + jnp.eye(x.shape[0], dtype=x.dtype))
    return r, d / r[..., None]


def literal(net, p, graph, x, t, unrolled):
    """Everything for every structure x [B, N, 3], as the published program computes it; `unrolled`: structure by structure, with the
    products of the tensor product whose coefficients are not zero."""

    def one(x, hops, t):
        n = x.shape[0]
        c = net.condition(p, graph) + net.time_token(p, t)
        r, u = displacements(x)
        basis = (1 + net.gate(p, p["edge_embedding.Embed_0.embedding"][hops])) * radial(r)[:, :, None]
        basis = jnp.concatenate([basis[:, :, :1], basis[:, :, 1:] * u[..., None]], 2)

        def messages(index, q, k, v):
            name, (_, parities, _, f) = f"layers_{index}_encoder.SelfAttention_0", q.shape
            token = dense(p, f"{name}.relative_positional_encoding", basis[:, :, 0]).reshape(n, n, parities, -1, f)
            w = net.weights((q[:, None] * k[None] * components(token)).sum((2, 3)))
            filters = [dense(p, f"{name}.filter.{i}", basis[:, :, s]) for i, s in zip(("0+", "1-"), SLICES)]
            filters, values = jnp.concatenate(filters, 2), jnp.repeat(w, f // net.heads, -1)[:, :, None, None] * v[None]
            coupling, present = net.coupling(p, index)
            if not unrolled:
                return jnp.einsum("ijlf,ijamf,lambnf->ijbnf", filters, values, coupling).sum(1)
            term = lambda at: filters[:, :, at[0]] * values[:, :, at[1], at[2]] * coupling[at]
            sums = [[sum(term(at) for at in present if at[3:] == (b, m)) for m in range(4)] for b in range(parities)]
            return jnp.stack([jnp.stack(rows, 2) for rows in sums], 2).sum(1)

        return net.transformer(p, graph["types"], c, messages)

    hops = jnp.broadcast_to(graph["hops"], (x.shape[0], *graph["hops"].shape))
    over = jax.lax.map if unrolled else lambda one, rows: jax.vmap(one)(rows)
    return over(lambda row: one(*row), (x, hops, jnp.broadcast_to(t, x.shape[0])))


def prepare(net, p, graph):
    """What depends on the graph alone: tokens of atoms, and one more than the gates of all pairs."""
    gates = net.gate(p, p["edge_embedding.Embed_0.embedding"][: int(graph["hops"].max()) + 1])
    return net.condition(p, graph), 1 + gates[graph["hops"]]


def factored(net, p, graph, prepared, x, t):
    tokens, gates = prepared
    c = tokens + net.time_token(p, t)
    n = len(graph["types"])

    def one(x):
        r, u = displacements(x)
        basis = (gates * radial(r)[:, :, None]).transpose(2, 0, 1, 3).reshape(2, n * n, RADIAL)

        def messages(index, q, k, v):
            name, (_, parities, size, f) = f"layers_{index}_encoder.SelfAttention_0", q.shape
            degrees = 1 if size == 1 else 2
            relative = p[f"{name}.relative_positional_encoding.kernel"].reshape(RADIAL, parities, degrees, f)
            logits = sum((q[:, None, a, s] * k[None, :, a, s]).sum(2) * (basis[0] @ relative[:, a, l]).reshape(n, n, f)
                         for a in range(parities) for l, s in enumerate(SLICES[:degrees]))
            f0 = dense(p, f"{name}.filter.0+", basis[0]).reshape(n, n, f)
            f1 = dense(p, f"{name}.filter.1-", basis[1]).reshape(n, n, f)
            w = jnp.repeat(net.weights(logits), f // net.heads, -1)
            # Sums over senders of f0 v, and of f1 with every harmonic times every component of v: [N, parity, 4, F], [N, 3, parity, 4, F].
            f0, f1 = w * f0, w * f1
            s = (f0[:, :, None, None] * v[None]).sum(1)
            u1 = ((f1[:, :, None] * u[..., None])[:, :, :, None, None] * v[None, :, None]).sum(1)
            kappa = p[f"{name}.tensor.kernel"][0]
            out = [[0, 0] for _ in range(parities)]
            for a in range(parities):
                other = 1 - a if parities == 2 else 0
                out[a][0] += kappa[0, a, 0, a, 0] * s[:, a, 0]
                out[other][1] += kappa[1, a, 0, other, 1] * u1[:, :, a, 0]
                if degrees == 2:
                    m = u1[:, :, a, 1:]
                    dot = m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2]
                    cross = jnp.stack([m[:, k - 2, k - 1] - m[:, k - 1, k - 2] for k in range(3)], 1)
                    out[a][1] += kappa[0, a, 1, a, 1] * s[:, a, 1:]
                    out[other][0] += kappa[1, a, 1, other, 0] * dot / sqrt(3)
                    out[other][1] += kappa[1, a, 1, other, 1] * cross / sqrt(2)
            return jnp.stack([jnp.concatenate([scalar[:, None], vector], 1) for scalar, vector in out], 1)

        return net.transformer(p, graph["types"], c, messages)

    # As many structures together as the caches hold.  Batches of one are left out: XLA makes a wrong program of them (jaxlib 0.10.2).
    size = max(s for s in range(1, max(80 // n, 1) + 1) if x.shape[0] % s == 0)
    return jax.lax.map(one, x, batch_size=size) if size > 1 else jax.lax.map(one, x)


def features(described, elements):
    """One-hot features of atoms: every block but elements, aromaticity and sizes of rings ends with a column for anything else."""
    rows = np.zeros((len(described["atoms"]), 59 + len(elements)), np.float32)
    e = 17 + len(elements)
    for row, z, degree, aromatic, hybrid, ring in zip(rows, *(described[key] for key in ("atoms", "degrees", "aromatic", "hybrids", "rings"))):
        # No handedness, no hydrogens that are no atoms, no radicals, no charge.
        row[[2, 5, 11, 17 + elements.index(z), e + 1 + degree, e + 7 + hybrid, e + 13, e + 24, e + 37 + (ring > 0)]] = 1
        row[e] = aromatic
        if ring:
            row[e + 28 + ring] = 1
    return rows


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


def programs(net, p, graph):
    """Predictions of x [B, N, 3] at t in every form, and what they take as their last argument."""
    prepared = jax.block_until_ready(prepare(net, p, graph))
    forms = {
        "literal": jax.jit(lambda p, x, t, prepared: literal(net, p, graph, x, t, False)),
        "unrolled": jax.jit(lambda p, x, t, prepared: literal(net, p, graph, x, t, True)),
        "factored": jax.jit(lambda p, x, t, prepared: factored(net, p, graph, prepared, x, t)),
    }
    return forms, prepared


def compare(forms, prepared, p, x, t, clean):
    """Largest differences from `clean`, relative to its largest entry."""
    results = {form: np.asarray(f(p, jnp.asarray(x, float), jnp.asarray(t, float), prepared), float) for form, f in forms.items()}
    return {form: float(abs(y - clean).max() / abs(clean).max()) for form, y in results.items()}


def compare_with_authors(path):
    """Predictions for two molecules at three times, computed by the published program in double precision."""
    tensors, metadata = read(path)
    sizes = json.loads(metadata["config"])
    p = {name.removeprefix("params."): jnp.asarray(v, float) for name, v in tensors.items() if name.startswith("params.")}
    net = Network(sizes["num_heads"], sizes["num_blocks"])
    names = {"types": "atomic_numbers", "nodes": "node_attr", "bonds": "bond_attr", "senders": "bond_sender", "receivers": "bond_receiver"}
    names["hops"] = "hops"
    for molecule in "ethanol", "paracetamol":
        graph = {key: tensors[f"{molecule}.{name}"] for key, name in names.items()}
        forms, prepared = programs(net, p, graph)
        for case in (f"{molecule}.t{k}" for k in range(3)):
            t = float(tensors[f"{case}.t"])
            differences = compare(forms, prepared, p, tensors[f"{case}.x_t"][None], t, tensors[f"f64.{case}.x1_hat"])
            print(json.dumps({"atoms": len(graph["types"]), "t": t, "parameters": sum(v.size for v in p.values()), "differences": differences}))


def main():
    if arguments.write:
        write(arguments.write)
        return
    if arguments.authors:
        compare_with_authors(arguments.authors)
        return
    tensors, metadata = read(arguments.weights)
    network = json.loads(metadata["parameters"])["network"]
    elements = json.loads(metadata["types"])
    p = {name: jnp.asarray(tensors[name], float) for name in shapes(network, len(elements))}
    size = sum(leaf.size for leaf in p.values())
    described = json.loads(arguments.graph.read_text())
    bonds = {tuple(bond[:2]): bond[2] for bond in described["bonds"]}
    bonds |= {(j, i): kind for (i, j), kind in bonds.items()}
    senders, receivers = np.array(list(bonds)).T
    kinds = np.eye(BONDS, dtype=np.float32)[list(bonds.values())]
    graph = {"types": np.array(described["atoms"]), "nodes": features(described, elements), "bonds": kinds,
             "senders": senders, "receivers": receivers, "hops": np.array(described["hops"])}
    forms, prepared = programs(Network(network["heads"], network["blocks"]), p, graph)
    if arguments.check:
        rows = json.loads(arguments.check.read_text())
        for t in sorted(set(rows["t"])):
            at = np.array(rows["t"]) == t
            differences = compare(forms, prepared, p, np.array(rows["x"])[at], t, np.array(rows["clean"])[at])
            print(json.dumps({"atoms": len(graph["types"]), "t": t, "parameters": size, "differences": differences}), flush=True)
        return
    x = jax.random.normal(jax.random.PRNGKey(2), (arguments.batch, len(graph["types"]), 3))
    for form in arguments.form:
        result = clock(lambda: forms[form](p, x, jnp.asarray(0.4), prepared), arguments.seconds)
        row = {"form": form, "atoms": len(graph["types"]), "batch": arguments.batch, "parameters": size, "jax": jax.__version__, **result}
        print(json.dumps(row), flush=True)


main()
