// Pairs of the atoms of a team's molecules, of n atoms each, after rows.cu: (i, i + d mod n) at d − 1 times n plus i of its molecule, for
// d = 1 .. n/2 where both directions are one pair, for d = 1 .. n − 1 where they are two (`directed`). An atom gathers from its
// neighbours in the order of d, so that no two threads write to one place.

// Pairs of a molecule.
DEVICE int pairs_of(int n, bool directed) { return directed ? n * (n - 1) : n * (n - 1) / 2; }

// The two atoms of pair `p` of all: rows.
DEVICE void ends_of(int n, bool directed, int p, int* i, int* j) {
    int each = pairs_of(n, directed), replica = p / each, k = p - replica * each, d = k / n + 1, first = k % n;
    int second = first + d < n ? first + d : first + d - n;
    *i = replica * n + first;
    *j = replica * n + second;
}

// The pair of the atom of `row` and its e-th neighbour, whose row comes back; `sign` is 1 where the atom is the pair's first.
DEVICE int pair_of(int n, bool directed, int row, int e, int* other, real* sign) {
    int replica = row / n, i = row - replica * n, j = i + e < n ? i + e : i + e - n;
    bool first = directed || 2 * e < n || (2 * e == n && 2 * i < n);
    *other = replica * n + j;
    *sign = first ? real(1) : real(-1);
    return replica * pairs_of(n, directed) + (first ? (e - 1) * n + i : (n - e - 1) * n + j);
}
