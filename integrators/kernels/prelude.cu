// What every kernel begins with: scalars, teams of threads, noise. The text has two compilers: NVRTC for the device, and a
// C++ compiler behind host.h, where each thread is a fiber.
//
// Defined before it: DOUBLE (where `real` is double), TEAM (threads of a team), GROUPED (1 where a team moves several replicas
// of equally many atoms, else it moves one), BLOCK (most threads of a block), RIGID (1 where any system has rigid bonds: without
// them their kernels cost registers for nothing).
//
// Products and sums are fused where `multiply_add` says so and nowhere else, so that a function gives the same bits wherever it is
// inlined. Sums run in an order that depends on nothing but the system: no atomic addition anywhere, so a restart finds the same bits.

#ifndef SCOREFIELD_HOST
typedef unsigned int u32;
typedef unsigned long long u64;
#define DEVICE static __device__ __forceinline__
#define KERNEL(name, Parameters) extern "C" __global__ void __launch_bounds__(BLOCK) name(const __grid_constant__ Parameters p)
#define SHARED_REALS(name)                                 \
    extern __shared__ __align__(16) unsigned char memory[]; \
    real* name = reinterpret_cast<real*>(memory)
#endif

#ifdef DOUBLE
typedef double real;
DEVICE real square_root(real x) { return sqrt(x); }
DEVICE real inverse_root(real x) { return rsqrt(x); }
DEVICE real exponential(real x) { return exp(x); }
DEVICE real logarithm(real x) { return log(x); }
DEVICE real arc_cosine(real x) { return acos(x); }
DEVICE real absolute(real x) { return fabs(x); }
DEVICE real larger(real a, real b) { return fmax(a, b); }
DEVICE real smaller(real a, real b) { return fmin(a, b); }
DEVICE real multiply_add(real a, real b, real c) { return fma(a, b, c); }
DEVICE void half_turns(real x, real* sine, real* cosine) { sincospi(x, sine, cosine); }
#else
typedef float real;
DEVICE real square_root(real x) { return sqrtf(x); }
DEVICE real inverse_root(real x) { return rsqrtf(x); }
DEVICE real exponential(real x) { return expf(x); }
DEVICE real logarithm(real x) { return logf(x); }
DEVICE real arc_cosine(real x) { return acosf(x); }
DEVICE real absolute(real x) { return fabsf(x); }
DEVICE real larger(real a, real b) { return fmaxf(a, b); }
DEVICE real smaller(real a, real b) { return fminf(a, b); }
DEVICE real multiply_add(real a, real b, real c) { return fmaf(a, b, c); }
DEVICE void half_turns(real x, real* sine, real* cosine) { sincospif(x, sine, cosine); }
#endif

// ---- teams ----------------------------------------------------------------------------------------------------------

// The threads that move one replica: one, a warp, or a whole block; where GROUPED, those that move several replicas.
struct Team {
    // Which of the block's teams, and which of all.
    int index, number;
    // Its first replica, and how many it has.
    int replica, count;
    int lane;
#if GROUPED
    // Threads that share the work out: all of the team, or those with atoms of one replica.
    int width;
#endif
};

// The team of this thread, where teams have `group` replicas each.
DEVICE Team this_team(int replicas, int group) {
    Team team;
    team.index = threadIdx.x / TEAM;
    team.number = blockIdx.x * (blockDim.x / TEAM) + team.index;
    team.lane = threadIdx.x % TEAM;
#if GROUPED
    team.replica = team.number * group;
    team.count = replicas - team.replica < group ? replicas - team.replica : group;
    team.width = TEAM;
#else
    team.replica = team.number;
    team.count = team.number < replicas ? 1 : 0;
#endif
    return team;
}

// Where threads that have nothing to do are.
const int NOWHERE = 0x7fff0000;

// The threads of `team` that move the replica whose atoms this thread moves; a thread has one atom at most where GROUPED.
DEVICE Team of_replica(const Team& team, int atoms) {
    Team place = team;
#if GROUPED
    int slot = team.lane / atoms;
    bool idle = slot >= team.count;
    place.replica = team.replica + (idle ? 0 : slot);
    place.lane = idle ? NOWHERE : team.lane - slot * atoms;
    place.width = atoms;
#endif
    return place;
}

// Waits for the team; what its threads wrote to shared memory is then seen by all of them.
DEVICE void sync() {
#if TEAM == 1
#elif TEAM == 32
    __syncwarp();
#else
    __syncthreads();
#endif
}

// Shares the indices 0 .. n out over the team, always in the same way.
#if GROUPED
#define EACH(i, n) for (int i = team.lane; i < (n); i += team.width)
#else
#define EACH(i, n) for (int i = team.lane; i < (n); i += TEAM)
#endif

// ---- noise ----------------------------------------------------------------------------------------------------------

// Philox4x32-10 (Salmon et al., SC'11): the same integers as on the host.
struct Bits {
    u32 word[4];
};

DEVICE Bits philox(u64 seed, u32 atom, u32 replica, u64 step, u32 purpose) {
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
    u32 c0 = atom, c1 = replica, c2 = (u32)step, c3 = ((u32)(step >> 32) & 0xffffffu) | (purpose << 24);
    for (int round = 0; round < 10; ++round) {
        u64 a = (u64)0xD2511F53u * c0, b = (u64)0xCD9E8D57u * c2;
        c0 = (u32)(b >> 32) ^ c1 ^ k0;
        c1 = (u32)b;
        c2 = (u32)(a >> 32) ^ c3 ^ k1;
        c3 = (u32)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    Bits bits = {{c0, c1, c2, c3}};
    return bits;
}

// A number in (0, 1), rounded as on the host.
DEVICE real uniform(u32 bits) {
#ifdef DOUBLE
    return (bits + 0.5) * (1.0 / 4294967296.0);
#else
    return ((float)(bits >> 9) + 0.5f) * (1.0f / 8388608.0f);
#endif
}

// Three standard normal numbers (Box and Muller).
DEVICE void normals(u64 seed, u32 atom, u32 replica, u64 step, u32 purpose, real* z) {
    Bits bits = philox(seed, atom, replica, step, purpose);
    real radius = square_root(real(-2) * logarithm(uniform(bits.word[0])));
    real radius_2 = square_root(real(-2) * logarithm(uniform(bits.word[2])));
    real sine, cosine, sine_2, cosine_2;
    half_turns(real(2) * uniform(bits.word[1]), &sine, &cosine);
    half_turns(real(2) * uniform(bits.word[3]), &sine_2, &cosine_2);
    z[0] = radius * cosine;
    z[1] = radius * sine;
    z[2] = radius_2 * cosine_2;
}

// ---- vectors --------------------------------------------------------------------------------------------------------

struct Vector {
    real x, y, z;
};

DEVICE Vector vector(real x, real y, real z) {
    Vector v = {x, y, z};
    return v;
}
DEVICE Vector load(const real* x, int i) { return vector(x[3 * i], x[3 * i + 1], x[3 * i + 2]); }
DEVICE void store(real* x, int i, Vector v) {
    x[3 * i] = v.x;
    x[3 * i + 1] = v.y;
    x[3 * i + 2] = v.z;
}
DEVICE Vector operator+(Vector a, Vector b) { return vector(a.x + b.x, a.y + b.y, a.z + b.z); }
DEVICE Vector operator-(Vector a, Vector b) { return vector(a.x - b.x, a.y - b.y, a.z - b.z); }
DEVICE Vector operator-(Vector a) { return vector(-a.x, -a.y, -a.z); }
DEVICE Vector operator*(real s, Vector a) { return vector(s * a.x, s * a.y, s * a.z); }
DEVICE real dot(Vector a, Vector b) { return multiply_add(a.z, b.z, multiply_add(a.y, b.y, a.x * b.x)); }
DEVICE Vector multiply_add(real s, Vector a, Vector b) {
    return vector(multiply_add(s, a.x, b.x), multiply_add(s, a.y, b.y), multiply_add(s, a.z, b.z));
}
DEVICE Vector cross(Vector a, Vector b) {
    return vector(multiply_add(a.y, b.z, -(a.z * b.y)), multiply_add(a.z, b.x, -(a.x * b.z)), multiply_add(a.x, b.y, -(a.y * b.x)));
}
