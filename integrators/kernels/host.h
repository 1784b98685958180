// Kernels on the CPU: stands in for what NVRTC knows by itself. Every thread of a block is a fiber that runs until it meets a
// barrier; the order in which fibers run is the caller's, so that a missing barrier shows as a result that depends on it.
// Shared memory holds NaN when a block begins.

#define SCOREFIELD_HOST

#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <string.h>
#include <ucontext.h>

#include <vector>

typedef unsigned int u32;
typedef unsigned long long u64;

struct Index {
    u32 x;
};
static Index threadIdx, blockIdx, blockDim;

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline void sincospi(double x, double* s, double* c) {
    *s = sin(M_PI * x);
    *c = cos(M_PI * x);
}
static inline void sincospif(float x, float* s, float* c) {
    *s = (float)sin(M_PI * (double)x);
    *c = (float)cos(M_PI * (double)x);
}

namespace host {

struct Fiber {
    ucontext_t start;
    jmp_buf place;
    std::vector<char> stack;
    bool begun, done;
};

static std::vector<Fiber> fibers;
static std::vector<u32> order;
static jmp_buf scheduler;
static u32 current, turn;
static void (*body)(const void*);
static const void* parameters;
static std::vector<double> shared;
static u64 random_state;

static void enter() {
    body(parameters);
    fibers[current].done = true;
    _longjmp(scheduler, 1);
}

// Gives the other fibers their turn.
static void wait() {
    if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler, 1);
}

static void resume() {
    Fiber& fiber = fibers[current];
    if (_setjmp(scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.start);
}

// How fibers follow each other: 0 forwards, 1 backwards, 2 shuffled anew after every barrier.
static void arrange(int how) {
    for (u32 i = 0; i < order.size(); ++i) order[i] = how == 1 ? (u32)order.size() - 1 - i : i;
    for (u32 i = (u32)order.size(); how == 2 && i > 1; --i) {
        random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
        u32 j = (u32)(random_state >> 33) % i, held = order[i - 1];
        order[i - 1] = order[j];
        order[j] = held;
    }
}

static void run_block(u32 threads, int how) {
    if (fibers.size() < threads) fibers.resize(threads);
    order.resize(threads);
    for (u32 i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        fiber.stack.resize(1 << 18);
        fiber.begun = fiber.done = false;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.data();
        fiber.start.uc_stack.ss_size = fiber.stack.size();
        fiber.start.uc_link = NULL;
        makecontext(&fiber.start, enter, 0);
    }
    static bool alive;
    do {
        arrange(how);
        alive = false;
        for (turn = 0; turn < order.size(); ++turn) {
            current = order[turn];
            if (fibers[current].done) continue;
            threadIdx.x = current;
            resume();
            alive = alive || !fibers[current].done;
        }
    } while (alive);
}

static void run(u32 grid, u32 block, size_t bytes, int how, void (*kernel)(const void*), const void* p) {
    body = kernel;
    parameters = p;
    random_state = 1;
    shared.resize(bytes / sizeof(double) + 2);
    blockDim.x = block;
    for (u32 b = 0; b < grid; ++b) {
        blockIdx.x = b;
        memset(shared.data(), 0xff, shared.size() * sizeof(double));
        run_block(block, how);
    }
}

}  // namespace host

static inline void __syncwarp() { host::wait(); }
static inline void __syncthreads() { host::wait(); }

#define DEVICE static inline
#define SHARED_REALS(name) real* name = reinterpret_cast<real*>(host::shared.data())
#define KERNEL(name, Parameters)                                                                              \
    static void name##_body(const Parameters& p);                                                             \
    static void name##_entry(const void* p) { name##_body(*static_cast<const Parameters*>(p)); }              \
    extern "C" size_t name##_size() { return sizeof(Parameters); }                                            \
    extern "C" void name(u32 grid, u32 block, size_t bytes, int how, const void* p) {                         \
        host::run(grid, block, bytes, how, name##_entry, p);                                                  \
    }                                                                                                         \
    static void name##_body(const Parameters& p)
