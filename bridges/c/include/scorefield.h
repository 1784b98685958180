/* scorefield's C interface, version 1: force providers for any program.
 *
 * Units are nm, kJ/mol, kJ/mol/nm and u (for models in reduced units: bare numbers; see "units" of the capabilities).
 * Arrays are contiguous, row-major doubles that belong to the caller. Nothing that is not finite is ever returned.
 *
 * Threads: a model may be used by any thread; calls on one model wait for each other, calls on different models do not.
 * scorefield_last_error is the calling thread's own. No function unwinds or exits: what goes wrong inside, panics included,
 * becomes an error. A model in which a panic happened refuses all further work. */
#ifndef SCOREFIELD_H
#define SCOREFIELD_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes when a struct or a meaning does; compare with scorefield_abi_version(). */
#define SCOREFIELD_ABI_VERSION 1

/* What functions that return int32_t return; scorefield_last_error says more. */
#define SCOREFIELD_OK 0
#define SCOREFIELD_INVALID 1 /* an argument is wrong */
#define SCOREFIELD_FAILED 2  /* the evaluation went wrong */
#define SCOREFIELD_PANIC 3   /* a bug in scorefield */

typedef struct scorefield_model scorefield_model;

/* B structures of the N atoms that the model was opened with. */
typedef struct scorefield_batch {
    size_t size;             /* sizeof(scorefield_batch) */
    size_t structures;       /* B */
    const double *positions; /* [B, N, 3] */
    const double *cells;     /* [B, 3, 3], rows a, b, c; NULL in open space */
} scorefield_batch;

/* Where results go. NULL: not wanted. */
typedef struct scorefield_results {
    size_t size;              /* sizeof(scorefield_results) */
    double *forces;           /* [B, N, 3] */
    double *energy;           /* [B] */
    double *virial;           /* [B, 3, 3]: -dE/dstrain = sum of r (x) f, not divided by the volume */
    double *atom_energy;      /* [B, N] */
    double *energy_deviation; /* [B]: standard deviation over a committee */
    double *force_deviation;  /* [B, N, 3]: likewise, of every component */
} scorefield_results;

/* One domain of a larger system: its own atoms, then ghosts (copies of atoms that other domains or periodic images own). */
typedef struct scorefield_domain {
    size_t size;      /* sizeof(scorefield_domain) */
    int64_t owned;    /* own atoms */
    int64_t atoms;    /* own atoms and ghosts, N */
    const double *positions;          /* [N, 3] */
    const uint32_t *types;            /* [N]: atomic numbers, or the model's own types */
    const int32_t *neighbour_counts;  /* [owned] */
    const int32_t *const *neighbours; /* [owned] full lists: all atoms within the local range, and perhaps more */
    int32_t neighbour_mask;           /* bits of an entry that are an atom's index; -1 for all */
    int32_t reserved;                 /* 0 */
    /* For message passing, in a later version: NULL. They would bring `width` numbers per atom from owners to ghosts
     * (forward), and add those of ghosts to their owners (reverse). */
    int32_t (*forward)(void *context, int64_t width, double *values);
    int32_t (*reverse)(void *context, int64_t width, double *values);
    void *context;
} scorefield_domain;

/* The energy of a domain is the sum over its own atoms of energies that depend on neighbours within the local range; forces
 * are minus its gradient with respect to all N atoms. Those on ghosts are to be added to the atoms they are copies of. */
typedef struct scorefield_domain_results {
    size_t size;         /* sizeof(scorefield_domain_results) */
    double *forces;      /* [N, 3], overwritten */
    double *atom_energy; /* [owned] or NULL */
    double energy;       /* out */
    double virial[9];    /* out, [3, 3] */
} scorefield_domain_results;

/* SCOREFIELD_ABI_VERSION of the library. */
uint32_t scorefield_abi_version(void);

/* The program's version, for example "0.1.0". */
const char *scorefield_version(void);

/* Opens a model from JSON (UTF-8), for example
 *   {"model": "lj:sigma=3.405 A,epsilon=0.0103 eV", "types": ["Ar", "Ar"], "dtype": "f64", "threads": 1}
 * model      as after `scorefield evaluate --model`
 * structure  a structure file that says which atoms there are; or
 * types      their symbols or atomic numbers. Without both they are those that the model brings along, or none: then only
 *            domains can be evaluated
 * positions  [[x, y, z], ...] in nm, for models bound to start positions
 * dtype      "f64" (default) or "f32": what forces are computed in
 * threads    over how many the structures of a batch are spread (default 1)
 * NULL where it cannot be opened. */
scorefield_model *scorefield_open(const char *spec);

/* What the model can do, as JSON: name, kind, temperature_K, conservative, energy, virial_periodic, atom_energy, uncertainty,
 * periodic, types, units, atoms, local_range_nm, ... Valid until the model is closed. NULL for a NULL model. */
const char *scorefield_capabilities(const scorefield_model *model);

/* Number N of atoms of a structure; 0 where none are known. */
size_t scorefield_atoms(const scorefield_model *model);

/* How far the energy of an atom sees, for scorefield_evaluate_local; 0 where the model is not local (the error says why). */
double scorefield_local_range(const scorefield_model *model);

/* Atomic number of a symbol such as "Ar", in any case; 0 where there is no such element. */
uint32_t scorefield_element(const char *symbol);

/* Evaluates whole structures. On failure, results hold anything. */
int32_t scorefield_evaluate(scorefield_model *model, const scorefield_batch *batch, const scorefield_results *results);

/* Evaluates one domain of a larger system, in double precision, where the model is local. */
int32_t scorefield_evaluate_local(scorefield_model *model, const scorefield_domain *domain, scorefield_domain_results *results);

/* What went wrong in the calling thread's latest failure; "" where nothing did. Valid until its next failure. */
const char *scorefield_last_error(void);

/* Frees a model; NULL is allowed. No other call may be using it. */
void scorefield_close(scorefield_model *model);

#ifdef __cplusplus
}
#endif
#endif
