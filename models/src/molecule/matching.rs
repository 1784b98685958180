//! Matchings of maximum cardinality in general graphs (Edmonds' blossom algorithm).
//!
//! The start is the *extra greedy* matching: an unmatched vertex of smallest degree takes its unmatched neighbour of
//! smallest degree. In molecules it is nearly always a maximum already. Where several maximum matchings exist, which atoms
//! are left with unpaired electrons depends on which is taken. We take the one that RDKit's binaries take: they sort edges
//! by the degrees of their ends, with the order of ties that GNU's `std::sort` leaves.

/// No vertex.
const NONE: u32 = u32::MAX;

/// Finds matchings; keeps its memory from one to the next.
#[derive(Default)]
pub(super) struct Matcher {
    mate: Vec<u32>,
    parent: Vec<u32>,
    base: Vec<u32>,
    in_tree: Vec<bool>,
    in_blossom: Vec<bool>,
    seen: Vec<bool>,
    queue: Vec<u32>,
    degree: Vec<u32>,
    directed: Vec<(u32, u32)>,
    starts: Vec<u32>,
    targets: Vec<u32>,
}

impl Matcher {
    /// A maximum matching of `n` vertices and `edges`: each vertex' partner, `u32::MAX` where it has none.
    pub(super) fn maximum(&mut self, n: usize, edges: &[(u32, u32)]) -> &[u32] {
        self.greedy(n, edges);
        let free = |mate: &[u32], v: usize| mate[v] == NONE;
        // Without two free vertices that have edges there is nothing to add.
        if (0..n).filter(|&v| free(&self.mate, v) && self.degree[v] > 0).nth(1).is_some() {
            self.link(n);
            for root in 0..n {
                if free(&self.mate, root) && self.degree[root] > 0 {
                    self.augment(root as u32, n);
                }
            }
        }
        &self.mate
    }

    fn greedy(&mut self, n: usize, edges: &[(u32, u32)]) {
        self.mate.clear();
        self.mate.resize(n, NONE);
        self.degree.clear();
        self.degree.resize(n, 0);
        self.directed.clear();
        for &(u, v) in edges {
            self.degree[u as usize] += 1;
            self.degree[v as usize] += 1;
            self.directed.extend([(u, v), (v, u)]);
        }
        let degree = &self.degree;
        gnu_sort(&mut self.directed, |e| degree[e.1 as usize]);
        self.directed.sort_by_key(|e| degree[e.0 as usize]);
        for &(u, v) in &self.directed {
            if self.mate[u as usize] == NONE && self.mate[v as usize] == NONE {
                self.mate[u as usize] = v;
                self.mate[v as usize] = u;
            }
        }
    }

    /// Neighbours of each vertex, from the directed edges.
    fn link(&mut self, n: usize) {
        self.starts.clear();
        self.starts.resize(n + 1, 0);
        for v in 0..n {
            self.starts[v + 1] = self.starts[v] + self.degree[v];
        }
        self.targets.clear();
        self.targets.resize(self.directed.len(), 0);
        let mut next = self.starts.clone();
        for &(u, v) in &self.directed {
            self.targets[next[u as usize] as usize] = v;
            next[u as usize] += 1;
        }
    }

    /// Looks for an augmenting path from `root` and flips it.
    fn augment(&mut self, root: u32, n: usize) {
        self.in_tree.clear();
        self.in_tree.resize(n, false);
        self.parent.clear();
        self.parent.resize(n, NONE);
        self.base.clear();
        self.base.extend(0..n as u32);
        self.in_tree[root as usize] = true;
        self.queue.clear();
        self.queue.push(root);
        let mut head = 0;
        while head < self.queue.len() {
            let v = self.queue[head];
            head += 1;
            for k in self.starts[v as usize]..self.starts[v as usize + 1] {
                let w = self.targets[k as usize];
                if self.base[v as usize] == self.base[w as usize] || self.mate[v as usize] == w {
                    continue;
                }
                let partner = self.mate[w as usize];
                if w == root || (partner != NONE && self.parent[partner as usize] != NONE) {
                    self.contract(v, w, n);
                } else if self.parent[w as usize] == NONE {
                    self.parent[w as usize] = v;
                    if partner == NONE {
                        self.flip(w);
                        return;
                    }
                    self.in_tree[partner as usize] = true;
                    self.queue.push(partner);
                }
            }
        }
    }

    /// Matches along the path that ends in `w`.
    fn flip(&mut self, mut w: u32) {
        while w != NONE {
            let v = self.parent[w as usize];
            let next = self.mate[v as usize];
            self.mate[w as usize] = v;
            self.mate[v as usize] = w;
            w = next;
        }
    }

    /// An odd cycle through `v` and `w` becomes one vertex.
    fn contract(&mut self, v: u32, w: u32, n: usize) {
        let top = self.common_base(v, w, n);
        self.in_blossom.clear();
        self.in_blossom.resize(n, false);
        self.mark(v, top, w);
        self.mark(w, top, v);
        for i in 0..n {
            if self.in_blossom[self.base[i] as usize] {
                self.base[i] = top;
                if !self.in_tree[i] {
                    self.in_tree[i] = true;
                    self.queue.push(i as u32);
                }
            }
        }
    }

    fn mark(&mut self, mut v: u32, top: u32, mut child: u32) {
        while self.base[v as usize] != top {
            let partner = self.mate[v as usize];
            self.in_blossom[self.base[v as usize] as usize] = true;
            self.in_blossom[self.base[partner as usize] as usize] = true;
            self.parent[v as usize] = child;
            child = partner;
            v = self.parent[partner as usize];
        }
    }

    fn common_base(&mut self, mut v: u32, mut w: u32, n: usize) -> u32 {
        self.seen.clear();
        self.seen.resize(n, false);
        loop {
            v = self.base[v as usize];
            self.seen[v as usize] = true;
            if self.mate[v as usize] == NONE {
                break;
            }
            v = self.parent[self.mate[v as usize] as usize];
        }
        loop {
            w = self.base[w as usize];
            if self.seen[w as usize] {
                return w;
            }
            w = self.parent[self.mate[w as usize] as usize];
        }
    }
}

/// Ranges up to this length are left to insertion.
const SHORT: usize = 16;

/// Sorts by `key`, with the order of equal entries that the introsort of GNU's C++ library leaves (Musser, Softw. Pract.
/// Exper. 27, 983 (1997)): halves around a median of three, then insertion.
fn gnu_sort<T: Copy>(list: &mut [T], key: impl Fn(&T) -> u32 + Copy) {
    let depth = 2 * list.len().checked_ilog2().unwrap_or(0);
    partition(list, key, depth);
    let by_hand = list.len().min(SHORT);
    for i in 1..list.len() {
        let value = list[i];
        // The first part is searched from its own beginning only; the rest never gets there.
        let mut j = i;
        if i < by_hand && key(&value) < key(&list[0]) {
            j = 0;
        } else {
            while j > 0 && key(&value) < key(&list[j - 1]) {
                j -= 1;
            }
        }
        list.copy_within(j..i, j + 1);
        list[j] = value;
    }
}

fn partition<T: Copy>(mut list: &mut [T], key: impl Fn(&T) -> u32 + Copy, mut depth: u32) {
    while list.len() > SHORT {
        if depth == 0 {
            // Only adversarial input gets here; any order of ties will do.
            list.sort_by_key(key);
            return;
        }
        depth -= 1;
        let n = list.len();
        let (a, b, c) = (key(&list[1]), key(&list[n / 2]), key(&list[n - 1]));
        let median = match (a < b, b < c, a < c) {
            (true, true, _) => n / 2,
            (true, false, true) => n - 1,
            (true, false, false) => 1,
            (false, _, true) => 1,
            (false, true, false) => n - 1,
            (false, false, false) => n / 2,
        };
        list.swap(0, median);
        let pivot = key(&list[0]);
        let (mut low, mut high) = (1, n);
        let cut = loop {
            while key(&list[low]) < pivot {
                low += 1;
            }
            high -= 1;
            while pivot < key(&list[high]) {
                high -= 1;
            }
            if low >= high {
                break low;
            }
            list.swap(low, high);
            low += 1;
        };
        let (left, right) = list.split_at_mut(cut);
        partition(right, key, depth);
        list = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most edges without a common vertex, by trying all.
    fn exhaustive(edges: &[(u32, u32)], used: u32) -> usize {
        let Some((&(u, v), rest)) = edges.split_first() else { return 0 };
        let without = exhaustive(rest, used);
        if used & (1 << u | 1 << v) != 0 { without } else { without.max(1 + exhaustive(rest, used | 1 << u | 1 << v)) }
    }

    #[test]
    fn as_large_as_the_largest_of_all() {
        let mut matcher = Matcher::default();
        let mut state = 7u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut beyond_greedy = 0;
        for _ in 0..3000 {
            let n = 2 + random(9) as u32;
            let density = 1 + random(4);
            let edges: Vec<(u32, u32)> =
                (0..n).flat_map(|u| (u + 1..n).map(move |v| (u, v))).filter(|_| random(5) < density).take(16).collect();
            matcher.greedy(n as usize, &edges);
            let greedy = matcher.mate.iter().filter(|&&m| m != NONE).count() / 2;
            let mate = matcher.maximum(n as usize, &edges);
            for (v, &m) in mate.iter().enumerate().filter(|(_, m)| **m != NONE) {
                assert_eq!(mate[m as usize], v as u32);
                assert!(edges.contains(&(m.min(v as u32), m.max(v as u32))));
            }
            let size = mate.iter().filter(|&&m| m != NONE).count() / 2;
            assert_eq!(size, exhaustive(&edges, 0), "{edges:?}");
            beyond_greedy += usize::from(size > greedy);
        }
        assert!(beyond_greedy > 20, "greedy alone was enough too often to test anything: {beyond_greedy}");
    }
}
