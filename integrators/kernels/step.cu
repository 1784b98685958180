// Many steps of a plan for every replica: positions, velocities and forces stay in their team's shared memory from the first step
// of a launch to the last. Comes after a model's text, which defines
//
//     struct Model                                                   parameters, aligned to 8 bytes
//     template <bool ENERGY> real forces(const Model&, const Team&, int atoms, const real* x, real* f, real* scratch)
//
// `forces` finds `x` complete, overwrites `f`, and returns this thread's share of the energy where ENERGY; its caller waits
// for the team before and after. Where GROUPED, `x` and `f` are those of all replicas of the team, one after the other, and a
// thread's share is of the replica whose atoms it moves. Each atom belongs to one thread in every stage, so stages need no barrier
// between them.

enum StageKind { KICK, DRIFT, THERMOSTAT, DIFFUSE, REMOVE_DRIFT, FORCE };

struct Stage {
    int kind;
    // DIFFUSE: the mean of this step's and the next step's noise.
    int average;
    real a, b;
};

const int MOST_STAGES = 12;
const u32 PURPOSE_THERMOSTAT = 0, PURPOSE_OVERDAMPED = 1;

enum Status { RUNS, FROZEN, DIVERGED };

struct Run {
    Model model;
    Constraints constraints;
    // [A, 3]: positions, velocities, forces; phase when all replicas were last seen in range.
    real *x, *v, *f, *good_x, *good_v;
    // First atom of each replica [B + 1], its system and the first row of that in the tables of masses [B], its global id [B].
    const int *first, *system, *table;
    const u32* id;
    // [rows, 3]: 1/m, 1/√m and m; 0 for what does not move.
    const real *inverse_mass, *inverse_root_mass, *mass;
    // √kT and what `rescale` multiplies velocities with [B].
    const real *root_kt, *scale;
    // [B]
    double* energy;
    u64* step;
    int *status, *restores, *where;
    double* value;
    // 1 where any replica diverged.
    int* any;
    u64 seed, end, check_every;
    real position_limit, velocity_limit, bond_limit;
    // All, those of a team, and atoms of the largest.
    int replicas, group, most;
    // Reals of the [N, 3] array of a team, and of a model's scratch in shared memory.
    int row, scratch;
    int stages;
    Stage stage[MOST_STAGES];
};

// The team's part of shared memory: rows of x, v and f, one real per thread, the model's scratch, and positions before a move
// where there are rigid bonds.
DEVICE int team_reals(const Run& p) { return (RIGID ? 4 : 3) * p.row + TEAM + p.scratch; }

// Which threads move the replica of `place`.
DEVICE int first_lane(const Team& team, const Team& place) { return GROUPED && place.lane != NOWHERE ? team.lane - place.lane : 0; }
DEVICE int end_lane(const Team& team, const Team& place) {
#if GROUPED
    return place.lane != NOWHERE ? first_lane(team, place) + place.width : 0;
#else
    return TEAM;
#endif
}

// The smallest of the numbers of threads [first, end). `votes` holds one per thread of the team.
DEVICE int least_of(const Team& team, int mine, int* votes, int first, int end) {
    votes[team.lane] = mine;
    sync();
    int least = mine;
    for (int lane = first; lane < end; ++lane) least = votes[lane] < least ? votes[lane] : least;
    sync();
    return least;
}

// Subtracts the centre-of-mass velocity; sums run over atoms in order.
DEVICE void remove_drift(const Team& team, int atoms, const real* mass, real* v, real* drift) {
    sync();
    EACH(axis, 3) {
        real momentum = 0, total = 0;
        for (int i = 0; i < atoms; ++i) {
            momentum = multiply_add(mass[3 * i + axis], v[3 * i + axis], momentum);
            total += mass[3 * i + axis];
        }
        drift[axis] = total > real(0) ? momentum / total : real(0);
    }
    sync();
    EACH(i, atoms) {
        for (int axis = 0; axis < 3; ++axis) {
            if (mass[3 * i + axis] > real(0)) v[3 * i + axis] -= drift[axis];
        }
    }
}

KERNEL(run, Run) {
    const Team crew = this_team(p.replicas, p.group);
    if (crew.count <= 0) return;
    int atoms = GROUPED ? p.most : p.first[crew.replica + 1] - p.first[crew.replica];
    const Team place = of_replica(crew, atoms);
    int r = place.replica, begin = p.first[r], system = p.system[r];
    u64 step = p.step[r];
    bool runs = place.lane != NOWHERE && p.status[r] == RUNS && step < p.end;
    if (!GROUPED && !runs) return;
    SHARED_REALS(reals);
    real* all_x = reals + crew.index * team_reals(p);
    real *all_f = all_x + 2 * p.row, *lanes = all_f + p.row, *all_scratch = lanes + TEAM;
    // Of this thread's replica.
    int slot = r - crew.replica;
    real *x = all_x + 3 * atoms * slot, *v = x + p.row, *f = v + p.row, *scratch = all_scratch + 3 * slot;
    real* old = all_scratch + p.scratch + 3 * atoms * slot;
    const real *inverse_mass = p.inverse_mass + 3 * p.table[r], *inverse_root_mass = p.inverse_root_mass + 3 * p.table[r];
    const real* mass = p.mass + 3 * p.table[r];
    real root_kt = p.root_kt[r];
    u32 id = p.id[r];
    int restores = p.restores[r];
    // The threads of a replica that has stopped have nothing to do.
    Team team = place;
    EACH(i, atoms) {
        for (int k = 3 * i; k < 3 * i + 3; ++k) {
            x[k] = p.x[3 * begin + k];
            v[k] = p.v[3 * begin + k];
            f[k] = p.f[3 * begin + k];
        }
    }
    if (!runs) team.lane = NOWHERE;
    bool began = runs, diverged = false;
    const int none = 0x7fffffff;
    for (;;) {
        // To the next look of this replica, or of any in the team.
        u64 look = (step / p.check_every + 1) * p.check_every;
        look = look < p.end ? look : p.end;
        int ahead = !runs ? none : look - step < (u64)none ? (int)(look - step) : none - 1;
        if (GROUPED) ahead = least_of(crew, ahead, reinterpret_cast<int*>(lanes), 0, TEAM);
        if (ahead == none) break;
        for (int k = 0; k < ahead; ++k, step += runs ? 1 : 0) {
            for (int s = 0; s < p.stages; ++s) {
                const Stage& stage = p.stage[s];
                if (RIGID && (stage.kind == DRIFT || stage.kind == DIFFUSE)) {
                    EACH(i, atoms) { store(old, i, load(x, i)); }
                }
                switch (stage.kind) {
                    case KICK:
                        EACH(i, atoms) {
                            for (int k = 3 * i; k < 3 * i + 3; ++k) v[k] = multiply_add(stage.a * inverse_mass[k], f[k], v[k]);
                        }
                        break;
                    case DRIFT:
                        EACH(i, atoms) {
                            for (int k = 3 * i; k < 3 * i + 3; ++k) x[k] = multiply_add(stage.a, v[k], x[k]);
                        }
                        break;
                    case THERMOSTAT:
                        EACH(i, atoms) {
                            real z[3];
                            normals(p.seed, i, id, step, PURPOSE_THERMOSTAT, z);
                            for (int a = 0; a < 3; ++a) {
                                int k = 3 * i + a;
                                v[k] = multiply_add(stage.a, v[k], stage.b * root_kt * inverse_root_mass[k] * z[a]);
                            }
                        }
                        break;
                    case DIFFUSE:
                        EACH(i, atoms) {
                            real z[3], next[3] = {0, 0, 0};
                            normals(p.seed, i, id, step, PURPOSE_OVERDAMPED, z);
                            if (stage.average) normals(p.seed, i, id, step + 1, PURPOSE_OVERDAMPED, next);
                            for (int a = 0; a < 3; ++a) {
                                int k = 3 * i + a;
                                real noise = stage.average ? real(0.5) * (z[a] + next[a]) : z[a];
                                real moved = multiply_add(stage.a * inverse_mass[k], f[k], x[k]);
                                x[k] = multiply_add(stage.b * root_kt * inverse_root_mass[k], noise, moved);
                            }
                        }
                        break;
                    case REMOVE_DRIFT:
                        remove_drift(team, atoms, mass, v, scratch);
                        break;
                    case FORCE:
                        sync();
                        forces<false>(p.model, crew, atoms, all_x, all_f, all_scratch);
                        sync();
                        break;
                }
                if (RIGID && stage.kind <= DIFFUSE) {
                    After after = stage.kind == DRIFT ? DRIFTED : stage.kind == DIFFUSE ? DISPLACED : VELOCITY;
                    correct(p.constraints, system, team, after, real(1) / stage.a, x, v, old);
                }
            }
        }
        // A look: numbers out of range, NaN among them, send the replica back to where it was last seen in range.
        bool looks = runs && step == look;
        int bad = none;
        EACH(i, atoms) {
            for (int k = 3 * i; k < 3 * i + 3; ++k) {
                if (!(absolute(x[k]) <= p.position_limit) && k < bad) bad = k;
                if (!(absolute(v[k]) <= p.velocity_limit) && 3 * atoms + k < bad) bad = 3 * atoms + k;
            }
        }
        sync();
        // Too large a step first shows in rigid bonds that the correction cannot restore.
        real broken = RIGID ? worst_bond(p.constraints, system, team, x) : real(0);
        if (!(broken <= p.bond_limit) && bad == none) bad = 6 * atoms;
        bad = least_of(crew, bad, reinterpret_cast<int*>(lanes), first_lane(crew, place), end_lane(crew, place));
        diverged = diverged || looks && bad != none;
        lanes[crew.lane] = broken;
        sync();
        if (looks && diverged && team.lane == 0) {
            for (int lane = first_lane(crew, place); lane < end_lane(crew, place); ++lane) broken = larger(broken, lanes[lane]);
            p.where[r] = bad;
            p.value[r] = bad < 3 * atoms ? x[bad] : bad < 6 * atoms ? v[bad - 3 * atoms] : broken;
            p.status[r] = DIVERGED;
            *p.any = 1;
        }
        sync();
        if (!looks) continue;
        EACH(i, atoms) {
            for (int k = 3 * i; k < 3 * i + 3; ++k) {
                if (diverged) {
                    x[k] = p.good_x[3 * begin + k];
                    v[k] = p.good_v[3 * begin + k];
                } else {
                    p.good_x[3 * begin + k] = x[k];
                    p.good_v[3 * begin + k] = v[k];
                }
            }
        }
        restores = diverged ? restores + 1 : 0;
        runs = !diverged && step < p.end;
        if (!runs) team.lane = NOWHERE;
    }
    if (least_of(crew, diverged ? 0 : none, reinterpret_cast<int*>(lanes), 0, TEAM) != none) {
        forces<false>(p.model, crew, atoms, all_x, all_f, all_scratch);
        sync();
    }
    if (!began) return;
    team = place;
    EACH(i, atoms) {
        for (int k = 3 * i; k < 3 * i + 3; ++k) {
            p.x[3 * begin + k] = x[k];
            p.v[3 * begin + k] = v[k];
            p.f[3 * begin + k] = f[k];
        }
    }
    if (team.lane == 0) {
        p.step[r] = step;
        p.restores[r] = restores;
    }
}

// Forces and energies at the present positions.
KERNEL(evaluate, Run) {
    const Team team = this_team(p.replicas, p.group);
    if (team.count <= 0) return;
    SHARED_REALS(reals);
    real* x = reals + team.index * team_reals(p);
    real *f = x + 2 * p.row, *lanes = f + p.row, *scratch = lanes + TEAM;
    int begin = p.first[team.replica], atoms = p.first[team.replica + 1] - begin;
    EACH(k, 3 * atoms * team.count) { x[k] = p.x[3 * begin + k]; }
    sync();
    lanes[team.lane] = forces<true>(p.model, team, atoms, x, f, scratch);
    sync();
    EACH(k, 3 * atoms * team.count) { p.f[3 * begin + k] = f[k]; }
    const Team place = of_replica(team, atoms);
    if (place.lane == 0) {
        double energy = 0;
        for (int lane = first_lane(team, place); lane < end_lane(team, place); ++lane) energy += lanes[lane];
        p.energy[place.replica] = energy;
    }
}

// Multiplies velocities by `scale`.
KERNEL(rescale, Run) {
    const Team crew = this_team(p.replicas, p.group);
    if (crew.count <= 0) return;
    int atoms = p.first[crew.replica + 1] - p.first[crew.replica];
    const Team team = of_replica(crew, atoms);
    int begin = p.first[team.replica];
    real scale = p.scale[team.replica];
    EACH(k, 3 * atoms) { p.v[3 * begin + k] *= scale; }
}

struct Draw {
    // [n, 4] and [n, 3].
    u32* bits;
    real* normal;
    u64 seed, step;
    int n;
    u32 replica, purpose;
};

// The noise of atoms 0 .. n, for comparison with the host's.
KERNEL(draw, Draw) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.n) return;
    Bits bits = philox(p.seed, i, p.replica, p.step, p.purpose);
    for (int k = 0; k < 4; ++k) p.bits[4 * i + k] = bits.word[k];
    normals(p.seed, i, p.replica, p.step, p.purpose, p.normal + 3 * i);
}
