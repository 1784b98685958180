"""A small SO3LR network of random weights, with energies and forces of an independent implementation.

The real weights are not part of this repository.  So that the code is checked everywhere, this script draws weights of
the same architecture and the same tensor names, but 64 features, 2 layers and elements up to chlorine, stores them in
half precision and evaluates a few molecules with the plain double-precision implementation below.  Forces are five-point
differences of the energy.

    python data/scripts/make_so3lr_fixture.py [--out tests/data/so3lr]
    python data/scripts/make_so3lr_fixture.py --check WEIGHTS.safetensors REFERENCE.json

``--check`` compares this implementation with a file of reference energies of real weights.

Units are eV and Angstrom; equations are those in ``models/src/so3lr/mod.rs``.
"""

import argparse
import json
import math
import struct
from pathlib import Path

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
GAMMA = 0.9448630629184640
CUTOFF = 4.5
NEIGHBOURS = 13.168995780096482
COULOMB = 14.399645351950548
HARTREE = 27.211386245988
BOHR = 0.529177210903
FINE_STRUCTURE = 0.0072973525693
FREE_ATOMS = {  # polarisability, C6; atomic units
    1: (4.5, 6.5), 6: (12.0, 46.6), 7: (7.4, 24.2), 8: (5.4, 15.6),
    9: (3.8, 9.52), 15: (25.0, 185.0), 16: (19.6, 134.0), 17: (15.0, 94.6),
}  # fmt: skip


# --- safetensors -------------------------------------------------------------


def read_safetensors(path):
    raw = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    body = raw[8 + length :]
    tensors = {}
    for name, t in header.items():
        start, end = t["data_offsets"]
        tensors[name] = np.frombuffer(body[start:end], DTYPES[t["dtype"]]).reshape(t["shape"]).astype(np.float64)
    return tensors


def write_safetensors(path, tensors, metadata):
    header, body = {"__metadata__": metadata}, b""
    for name in sorted(tensors):
        data = tensors[name].astype("<f2").tobytes()
        header[name] = {"dtype": "F16", "shape": list(tensors[name].shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + body)


# --- the model ---------------------------------------------------------------


def silu(x):
    return x / (1.0 + np.exp(-x))


def softplus(x):
    return np.logaddexp(x, 0.0)


def switch(r, on, off):
    """1 below `on`, 0 above `off`, smooth between."""
    c = (r - on) / (off - on)

    def s(y):
        safe = np.where(y > 0, y, 1.0)
        return np.where(y > 0, np.exp(-1.0 / safe), 0.0)

    return s(1 - c) / (s(1 - c) + s(c))


def harmonics(u):
    """Real spherical harmonics of degrees 1 to 4 of unit vectors `u`, from Legendre functions; [..., 24]."""
    x, y, z = u[..., 0], u[..., 1], u[..., 2]
    # (x + i y)^m; the factor sin^m of the Legendre function is in it.
    power = [np.ones_like(x) + 0j]
    for _ in range(4):
        power.append(power[-1] * (x + 1j * y))
    columns = []
    for l in range(1, 5):
        for m in range(-l, l + 1):
            k = abs(m)
            # d^k P_l / dz^k
            p = np.polynomial.legendre.Legendre.basis(l).deriv(k)(z)
            norm = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - k) / math.factorial(l + k))
            if m == 0:
                columns.append(norm * p)
            else:
                columns.append(math.sqrt(2.0) * norm * p * (power[k].real if m > 0 else power[k].imag))
    return np.stack(columns, -1)


DEGREE = np.repeat(np.arange(4), [3, 5, 7, 9])


def invariants(v):
    """sum_m v_lm^2 / sqrt(2 l + 1)."""
    return np.stack([(v[..., DEGREE == l] ** 2).sum(-1) / math.sqrt(2 * l + 3) for l in range(4)], -1)


class Model:
    def __init__(self, tensors):
        self.t = tensors
        self.layers = 1 + max(int(n.split(".")[0][7:]) for n in tensors if n.startswith("layers_"))

    def dense(self, name, x):
        y = x @ self.t[f"{name}.kernel"]
        bias = self.t.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * self.t[f"{name}.scale"] + self.t[f"{name}.bias"]

    def embed(self, which, z, value):
        """Embedding of the total charge (1) or of the number of unpaired electrons (2)."""
        name = f"feature_embeddings_{which}.ChargeSpinEmbedSparse_0"
        q = self.t[f"{name}.Embed_0.embedding"][z]
        row = 1 if value < 0 else 0
        k, v = self.t[f"{name}.Embed_1.embedding"][row], self.t[f"{name}.Embed_2.embedding"][row]
        y = softplus((q * k).sum(-1) / math.sqrt(q.shape[-1]))
        x = (value * y / y.sum())[:, None] * v
        h = self.dense(f"{name}.Residual_0.layers_0", silu(x))
        return x + self.dense(f"{name}.Residual_0.layers_1", silu(h))

    def energy(self, z, pos, charge=0, cutoff=1000.0):
        """Parts of the energy, charges and Hirshfeld ratios."""
        t, n = self.t, len(z)
        z = np.asarray(z)
        d = pos[None, :, :] - pos[:, None, :]  # [i, j]: from i to j
        far = np.eye(n, dtype=bool)
        r = np.sqrt((d**2).sum(-1) + far)
        unit = d / r[..., None]
        edge = (r < CUTOFF) & ~far
        fc = np.where(edge, 1 - 6 * (r / CUTOFF) ** 5 + 15 * (r / CUTOFF) ** 4 - 10 * (r / CUTOFF) ** 3, 0.0)
        u = np.exp(-GAMMA * r)
        count = t["layers_0.attention_block.radial_filter1_layer_1.kernel"].shape[0]
        rbf = np.stack([math.comb(count - 1, k) * u**k * (1 - u) ** (count - 1 - k) for k in range(count)], -1)
        y = harmonics(unit)
        x = t["feature_embeddings_0.Embed_0.embedding"][z] + self.embed(1, z, charge) + self.embed(2, z, 0)
        x = x / math.sqrt(3.0)
        ev = np.zeros((n, 24))
        for layer in range(self.layers):
            base = f"layers_{layer}"
            a = f"{base}.attention_block"
            g = invariants(ev[None, :, :] - ev[:, None, :])
            alpha = []
            for k in (1, 2):
                w = self.dense(f"{a}.radial_filter{k}_layer_2", silu(self.dense(f"{a}.radial_filter{k}_layer_1", rbf)))
                w = w + self.dense(f"{a}.spherical_filter{k}_layer_2", silu(self.dense(f"{a}.spherical_filter{k}_layer_1", g)))
                heads = t[f"{a}.Wq{k}"].shape[0]
                xh = x.reshape(n, heads, -1)
                q = np.einsum("hij,nhj->nhi", t[f"{a}.Wq{k}"], xh)
                key = np.einsum("hij,nhj->nhi", t[f"{a}.Wk{k}"], xh)
                dot = np.einsum("ihc,ijhc,jhc->ijh", q, w.reshape(n, n, heads, -1), key)
                alpha.append(dot * fc[..., None] / NEIGHBOURS)
            heads = alpha[0].shape[-1]
            v = np.einsum("hij,nhj->nhi", t[f"{a}.Wv1"], x.reshape(n, heads, -1))
            x = x + np.einsum("ijh,jhc->ihc", alpha[0], v).reshape(n, -1)
            ev = ev + np.einsum("ijm,ijm->im", alpha[1][..., DEGREE], y)
            x = self.norm(f"{base}.layer_normalization_1", x)
            x = x + self.dense(f"{base}.res_mlp_1_layer_2", silu(self.dense(f"{base}.res_mlp_1_layer_1", silu(x))))
            out = self.dense(f"{base}.exchange_block.mlp_layer_2", np.concatenate([x, invariants(ev)], -1))
            f = x.shape[-1]
            x = self.norm(f"{base}.layer_normalization_2", x + out[:, :f])
            ev = ev + out[:, f:][:, DEGREE] * ev

        o = "observables_0"
        atomic = self.dense(f"{o}.energy_dense_final", silu(self.dense(f"{o}.energy_dense_regression", x)))[:, 0]
        net = (atomic * t[f"{o}.atomic_scales"][z] + t[f"{o}.energy_offset"][z]).sum()

        raw = {k: softplus(t[f"{o}.zbl_repulsion.{k}"][0]) for k in ("a1", "a2", "a3", "a4", "c1", "c2", "c3", "c4", "d", "p")}
        total = sum(raw[f"c{k}"] for k in range(1, 5))
        zp = z ** raw["p"]
        s = (zp[:, None] + zp[None, :]) * raw["d"] * r
        phi = sum(raw[f"c{k}"] / total * np.exp(-raw[f"a{k}"] * s) for k in range(1, 5))
        zbl = 0.5 * (np.where(far, 0.0, switch(r, 0.0, 1.5)) * COULOMB * fc * z[:, None] * z[None, :] / r * phi).sum()

        e = f"{o}.electrostatic_energy.partial_charges"
        q = self.dense(f"{e}.charge_dense_final_vec", silu(self.dense(f"{e}.charge_dense_regression_vec", x)))[:, 0]
        q = q + t[f"{e}.Embed_0.embedding"][z, 0]
        q = q + (charge - q.sum()) / n
        erf = np.vectorize(math.erf)
        potential = erf(r / 4) / r
        at_cutoff = math.erf(cutoff / 4) / cutoff
        slope = 2 / math.sqrt(math.pi) / 4 * math.exp(-((cutoff / 4) ** 2)) / cutoff - at_cutoff / cutoff
        f = switch(r, 0.45 * cutoff, cutoff)
        shifted = potential - at_cutoff
        pair = f * shifted + (1 - f) * (shifted - slope * (r - cutoff))
        elec = 0.5 * COULOMB * (q[:, None] * q[None, :] * np.where(far | (r >= cutoff), 0.0, pair)).sum()

        h = self.dense("observables_2.hirshfeld_ratios_dense_final", silu(self.dense("observables_2.hirshfeld_ratios_dense_regression", x)))
        w = t["observables_2.Embed_1.embedding"][z]
        ratio = np.abs(t["observables_2.Embed_0.embedding"][z, 0] + (w * h).sum(-1) / math.sqrt(w.shape[-1]))
        a0, c0 = np.array([FREE_ATOMS[k] for k in z.tolist()]).T
        al, c6 = a0 * ratio, c0 * ratio**2
        aij = 0.5 * (al[:, None] + al[None, :])
        c6 = 2 * c6[:, None] * c6[None, :] * al[:, None] * al[None, :] / (al[:, None] ** 2 * c6[None, :] + al[None, :] ** 2 * c6[:, None])
        big = FINE_STRUCTURE ** (-4 / 21) * aij ** (1 / 7)
        sigma = -0.00078893 * big**3 + 0.04125273 * big**2 + 0.24428889 * big - 0.00433008
        gamma = 1 / (2 * sigma**2)
        p = 1.2 * 2 * 2.54 * aij ** (1 / 7)
        b = r / BOHR
        terms = (6, c6), (8, 5 * c6 / gamma), (10, 245 / 8 * c6 / gamma**2)
        disp = sum(c / (b**k + p**k) for k, c in terms) * switch(r, cutoff - 2, cutoff)
        disp = -0.5 * HARTREE * np.where(far, 0.0, disp).sum()
        return {"net": net, "zbl": zbl, "elec": elec, "disp": disp}, q, ratio

    def forces(self, z, pos, h=2e-3, **kw):
        def e(k, s):
            moved = pos.copy()
            moved.flat[k] += s
            return sum(self.energy(z, moved, **kw)[0].values())

        f = [-(8 * (e(k, h) - e(k, -h)) - (e(k, 2 * h) - e(k, -2 * h))) / (12 * h) for k in range(pos.size)]
        return np.array(f).reshape(pos.shape)


# --- the fixture -------------------------------------------------------------


def random_weights(rng, features=64, heads=4, layers=2, basis=16, hidden=16, radial=32, elements=18):
    t = {}

    def normal(name, *shape, scale):
        t[name] = rng.normal(size=shape) * scale

    def dense(name, inputs, outputs, bias=True, gain=1.0):
        normal(f"{name}.kernel", inputs, outputs, scale=gain / math.sqrt(inputs))
        if bias:
            normal(f"{name}.bias", outputs, scale=0.3)

    width = features // heads
    normal("feature_embeddings_0.Embed_0.embedding", elements, features, scale=1.0)
    for which in (1, 2):
        name = f"feature_embeddings_{which}.ChargeSpinEmbedSparse_0"
        normal(f"{name}.Embed_0.embedding", elements, features, scale=1.0)
        normal(f"{name}.Embed_1.embedding", 2, features, scale=1.0)
        normal(f"{name}.Embed_2.embedding", 2, features, scale=1.0)
        for k in (0, 1):
            dense(f"{name}.Residual_0.layers_{k}", features, features, bias=False)
    for layer in range(layers):
        a = f"layers_{layer}.attention_block"
        for name in ("Wq1", "Wk1", "Wv1", "Wq2", "Wk2"):
            normal(f"{a}.{name}", heads, width, width, scale=1 / math.sqrt(width))
        for k in (1, 2):
            dense(f"{a}.radial_filter{k}_layer_1", basis, radial, gain=6.0)
            dense(f"{a}.radial_filter{k}_layer_2", radial, features)
            dense(f"{a}.spherical_filter{k}_layer_1", 4, hidden, gain=3.0)
            dense(f"{a}.spherical_filter{k}_layer_2", hidden, features)
        dense(f"layers_{layer}.res_mlp_1_layer_1", features, features)
        dense(f"layers_{layer}.res_mlp_1_layer_2", features, features)
        dense(f"layers_{layer}.exchange_block.mlp_layer_2", features + 4, features + 4)
        for k in (1, 2):
            t[f"layers_{layer}.layer_normalization_{k}.scale"] = 1 + 0.2 * rng.normal(size=features)
            normal(f"layers_{layer}.layer_normalization_{k}.bias", features, scale=0.2)
    o = "observables_0"
    dense(f"{o}.energy_dense_regression", features, features)
    dense(f"{o}.energy_dense_final", features, 1)
    normal(f"{o}.energy_offset", elements, scale=2.0)
    t[f"{o}.atomic_scales"] = 1 + 0.2 * rng.normal(size=elements)
    e = f"{o}.electrostatic_energy.partial_charges"
    dense(f"{e}.charge_dense_regression_vec", features, features)
    dense(f"{e}.charge_dense_final_vec", features, 1)
    normal(f"{e}.Embed_0.embedding", elements, 1, scale=0.3)
    dense("observables_2.hirshfeld_ratios_dense_regression", features, features // 2)
    dense("observables_2.hirshfeld_ratios_dense_final", features // 2, features // 2)
    t["observables_2.Embed_0.embedding"] = 0.8 + 0.05 * rng.normal(size=(elements, 1))
    normal("observables_2.Embed_1.embedding", elements, features // 2, scale=0.3)
    zbl = {"a1": 3.2, "a2": 0.9423, "a3": 0.4029, "a4": 0.2016, "c1": 0.1818, "c2": 0.5099, "c3": 0.2802, "c4": 0.02817, "d": 2.1, "p": 0.23}
    for name, value in zbl.items():
        t[f"{o}.zbl_repulsion.{name}"] = np.array([math.log(math.expm1(value))])
    return {k: v.astype(np.float16).astype(np.float64) for k, v in t.items()}


def molecules(rng):
    water = [8, 1, 1], [[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.1, -0.763, -0.477]], 0
    ethanol = [6, 6, 8, 1, 1, 1, 1, 1, 1], [
        [1.168, -0.403, 0.0], [0.0, 0.560, 0.0], [-1.190, -0.215, 0.1], [-1.946, 0.381, 0.0], [0.042, 1.198, 0.887],
        [0.042, 1.198, -0.887], [2.115, 0.138, 0.0], [1.126, -1.042, 0.889], [1.126, -1.042, -0.889]], 0  # fmt: skip
    ammonium = [7, 1, 1, 1, 1], [[0, 0, 0], [0.59, 0.59, 0.6], [-0.59, -0.6, 0.59], [-0.6, 0.59, -0.59], [0.59, -0.58, -0.59]], 1
    # Every element, spread so that some pairs are beyond the network's reach and some within the repulsion's.
    halves = [1, 6, 7, 8, 9, 15, 16, 17], [
        [0, 0, 0], [1.1, 0.1, 0], [1.9, 1.2, 0.3], [3.1, 1.0, -0.5], [1.6, -1.2, 0.2], [4.4, 0.2, 0.4], [5.9, 1.3, 1.1], [7.1, -0.3, 0.2]], -1  # fmt: skip
    cluster = [8, 1, 1] * 4, np.concatenate([np.array(water[1]) + c for c in ([0, 0, 0], [2.9, 0.3, 0], [0.2, 3.1, 0.5], [4.0, 3.0, 6.0])]), 0
    out = {}
    for name, (z, pos, charge) in {"water": water, "ethanol": ethanol, "ammonium": ammonium, "eight": halves, "cluster": cluster}.items():
        pos = np.array(pos, dtype=float)
        out[name] = z, np.round(pos + 0.03 * rng.normal(size=pos.shape), 4), charge
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="tests/data/so3lr")
    parser.add_argument("--check", nargs=2, metavar=("WEIGHTS", "REFERENCE"))
    args = parser.parse_args()
    if args.check:
        model = Model(read_safetensors(args.check[0]))
        for name, ref in json.loads(Path(args.check[1]).read_text()).items():
            cutoff = float(name.split("lr=")[1])
            parts, _, _ = model.energy(ref["z"], np.array(ref["pos_A"]), cutoff=cutoff)
            print(f"{name:24s}" + "".join(f"  {k} {parts[k] - ref['parts'][k]:+.1e}" for k in parts))
        return
    rng = np.random.default_rng(20240811)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    weights = random_weights(rng)
    write_safetensors(out / "small.safetensors", weights, {"architecture": "so3lr", "note": "random weights, for tests only", "units": "eV, Angstrom"})
    model = Model(read_safetensors(out / "small.safetensors"))
    frames = []
    for name, (z, pos, charge) in molecules(rng).items():
        for cutoff in (1000.0, 6.0):
            parts, q, ratio = model.energy(z, pos, charge=charge, cutoff=cutoff)
            forces = model.forces(z, pos, charge=charge, cutoff=cutoff)
            frames.append({
                "name": name, "z": z, "charge": charge, "cutoff_A": cutoff, "positions_A": pos.tolist(), "parts_eV": parts,
                "charges": q.tolist(), "hirshfeld": ratio.tolist(), "forces_eV_A": forces.tolist(),
            })  # fmt: skip
            print(f"{name} {cutoff}: {parts}, largest force {abs(forces).max():.3f}, net force {abs(forces.sum(0)).max():.1e}")
    (out / "reference.json").write_text(json.dumps({"units": "eV, Angstrom, e", "frames": frames}) + "\n")


if __name__ == "__main__":
    main()
