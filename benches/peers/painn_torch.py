"""PaiNN in PyTorch: forces of a direct head and training steps, on one thread.

    python painn_torch.py --seconds 3

18 atoms, all pairs; the sizes that `cargo bench --bench painn` measures.  The
network is PaiNN as SchNetPack has it (K. Schütt et al., ICML 2021), pairs with
index_add, all radial functions evaluated.  Prints one JSON object per line.
"""

import argparse
import json
import math
import time

import torch
from torch import nn
from torch.nn import functional

NUMBERS = [6] * 7 + [8, 7] + [1] * 9


class Message(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n, self.first, self.second = n, nn.Linear(n, n), nn.Linear(n, 3 * n)

    def forward(self, q, mu, filters, unit, i, j):
        x = filters * self.second(functional.silu(self.first(q)))[j]
        dq, radial, vector = torch.split(x, self.n, -1)
        dmu = radial * unit[..., None] + vector * mu[j]
        return q.index_add(0, i, dq), mu.index_add(0, i, dmu)


class Update(nn.Module):
    def __init__(self, n, epsilon=1e-8):
        super().__init__()
        self.n, self.epsilon = n, epsilon
        self.mix = nn.Linear(n, 2 * n, bias=False)
        self.first, self.second = nn.Linear(2 * n, n), nn.Linear(n, 3 * n)

    def forward(self, q, mu):
        v, w = torch.split(self.mix(mu), self.n, -1)
        norm = torch.sqrt((v * v).sum(-2, keepdim=True) + self.epsilon)
        x = self.second(functional.silu(self.first(torch.cat([q, norm], -1))))
        dq, dmu, both = torch.split(x, self.n, -1)
        return q + dq + both * (v * w).sum(1, keepdim=True), mu + dmu * w


class Gated(nn.Module):
    def __init__(self, width, out, last):
        super().__init__()
        self.out, self.last = out, last
        self.mix = nn.Linear(width, 2 * out, bias=False)
        self.first, self.second = nn.Linear(width + out, width), nn.Linear(width, 2 * out)

    def forward(self, q, mu):
        v, w = torch.split(self.mix(mu), self.out, -1)
        x = self.second(functional.silu(self.first(torch.cat([q, v.norm(dim=-2)], -1))))
        scalars, gates = torch.split(x, [self.out, self.out], -1)
        return scalars if self.last else functional.silu(scalars), gates.unsqueeze(-2) * w


class PaiNN(nn.Module):
    def __init__(self, features, layers, radial, cutoff, head_layers=3, epsilon=1e-8):
        super().__init__()
        self.features, self.cutoff, self.epsilon = features, cutoff, epsilon
        self.embedding = nn.Embedding(100, features)
        self.register_buffer("centres", torch.linspace(0, cutoff, radial))
        self.width = cutoff / (radial - 1)
        self.filter = nn.Linear(radial, layers * 3 * features)
        self.messages = nn.ModuleList(Message(features) for _ in range(layers))
        self.updates = nn.ModuleList(Update(features) for _ in range(layers))
        widths = [max(1, features >> k) for k in range(head_layers)] + [1]
        self.head = nn.ModuleList(Gated(widths[k], widths[k + 1], k == head_layers - 1) for k in range(head_layers))

    def forward(self, numbers, x, i, j):
        r = x[j] - x[i]
        d = torch.sqrt((r * r).sum(-1, keepdim=True) + self.epsilon)
        basis = torch.exp(-0.5 / self.width**2 * (d[..., None] - self.centres) ** 2)
        switch = 0.5 * (torch.cos(d * math.pi / self.cutoff) + 1.0) * (d < self.cutoff)
        filters = torch.split(self.filter(basis) * switch[..., None], 3 * self.features, -1)
        q = self.embedding(numbers).unsqueeze(1)
        mu = torch.zeros(len(numbers), 3, self.features)
        for message, update, f in zip(self.messages, self.updates, filters):
            q, mu = message(q, mu, f, r / d, i, j)
            q, mu = update(q, mu)
        q = q.squeeze(1)
        for block in self.head:
            q, mu = block(q, mu)
        return mu.squeeze(-1)


def molecules(count):
    n = len(NUMBERS)
    numbers = torch.tensor(NUMBERS * count)
    x = 1.5 * torch.randn(count * n, 3, generator=torch.Generator().manual_seed(0))
    i, j = (~torch.eye(n, dtype=torch.bool)).nonzero().T
    start = (torch.arange(count) * n)[:, None]
    return numbers, x, (i + start).reshape(-1), (j + start).reshape(-1)


def fastest(work, seconds):
    work()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(json.dumps({"torch": torch.__version__}), flush=True)
    sizes = [("4 x 256, 600 radial", 256, 4, 600, 150.0), ("4 x 256, 20 radial", 256, 4, 20, 5.0), ("3 x 128, 600 radial", 128, 3, 600, 150.0)]
    for name, features, layers, radial, cutoff in sizes:
        model = PaiNN(features, layers, radial, cutoff)
        parameters = sum(p.numel() for p in model.parameters())
        for count in (1, 16):
            numbers, x, i, j = molecules(count)
            with torch.inference_mode():
                seconds = fastest(lambda: model(numbers, x, i, j), arguments.seconds)
            print(json.dumps({"what": "forces", "name": name, "parameters": parameters, "batch": count, "seconds": seconds}), flush=True)
    for name, features, layers in (("gpff", 256, 4), ("gpff-small", 128, 3)):
        model = PaiNN(features, layers, 600, 150.0)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
        numbers, x, i, j = molecules(64)

        def step():
            optimiser.zero_grad(set_to_none=True)
            (model(numbers, x, i, j) ** 2).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimiser.step()

        print(json.dumps({"what": "training", "name": name, "batch": 64, "seconds": fastest(step, arguments.seconds)}), flush=True)


if __name__ == "__main__":
    main()
