/* What the header promises, from the outside: layout, errors, threads. Prints the layout of structs for the Rust side. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scorefield.h"

#define CHECK(condition)                                                                                    \
    do {                                                                                                    \
        if (!(condition)) {                                                                                 \
            fprintf(stderr, "%s:%d: %s does not hold; last error: %s\n", __FILE__, __LINE__, #condition,    \
                    scorefield_last_error());                                                               \
            exit(1);                                                                                        \
        }                                                                                                   \
    } while (0)

#define SAYS(text) CHECK(strstr(scorefield_last_error(), text) != NULL)

#define ATOMS 13
#define ROUNDS 200
static const char *SPEC = "{\"model\": \"lj:sigma=3.405 A,epsilon=0.0103 eV,n=13\"}";

static void cluster(double *x, int round) {
    for (int i = 0; i < 3 * ATOMS; i++)
        x[i] = 0.41 * ((i / 3) / (i % 3 == 0 ? 1 : i % 3 == 1 ? 3 : 9) % 3) + 0.001 * ((i * 7 + round * 13) % 17);
}

static int32_t evaluate(scorefield_model *model, const double *x, double *forces, double *energy) {
    scorefield_batch batch = {sizeof batch, 1, x, NULL};
    scorefield_results results = {sizeof results, forces, energy, NULL, NULL, NULL, NULL};
    return scorefield_evaluate(model, &batch, &results);
}

/* Its own model, or one that all threads share. */
static void *thread(void *shared) {
    scorefield_model *model = shared ? shared : scorefield_open(SPEC);
    double *energies = malloc(ROUNDS * sizeof *energies);
    double x[3 * ATOMS], forces[3 * ATOMS];
    CHECK(model && energies);
    for (int round = 0; round < ROUNDS; round++) {
        cluster(x, round);
        CHECK(evaluate(model, x, forces, &energies[round]) == SCOREFIELD_OK);
    }
    if (!shared)
        scorefield_close(model);
    return energies;
}

static void threads(void) {
    scorefield_model *shared = scorefield_open(SPEC);
    double *expected = thread(NULL);
    pthread_t ids[6];
    for (int t = 0; t < 6; t++)
        CHECK(pthread_create(&ids[t], NULL, thread, t % 2 ? shared : NULL) == 0);
    /* This thread's failures do not disturb the others', nor theirs this one's. */
    CHECK(scorefield_open("nonsense") == NULL);
    for (int t = 0; t < 6; t++) {
        void *energies;
        CHECK(pthread_join(ids[t], &energies) == 0);
        CHECK(memcmp(energies, expected, ROUNDS * sizeof *expected) == 0);
        free(energies);
    }
    SAYS("cannot be read");
    free(expected);
    scorefield_close(shared);
}

static void errors(void) {
    double x[3 * ATOMS], forces[3 * ATOMS], energy[1];
    cluster(x, 0);
    CHECK(strcmp(scorefield_last_error(), "") == 0);
    CHECK(scorefield_open(NULL) == NULL);
    SAYS("NULL");
    CHECK(scorefield_open("\xff") == NULL);
    SAYS("UTF-8");
    CHECK(scorefield_open("{\"model\": \"lk\"}") == NULL);
    SAYS("unknown model `lk`");
    CHECK(scorefield_open("{\"model\": \"lj\", \"thread\": 1}") == NULL);
    SAYS("thread");
    CHECK(evaluate(NULL, x, forces, energy) == SCOREFIELD_INVALID);
    SAYS("NULL");
    CHECK(scorefield_capabilities(NULL) == NULL);
    CHECK(scorefield_atoms(NULL) == 0);
    scorefield_close(NULL);
    CHECK(scorefield_element("Ar") == 18 && scorefield_element("h") == 1);
    CHECK(scorefield_element("Qq") == 0 && scorefield_element(NULL) == 0);

    scorefield_model *model = scorefield_open(SPEC);
    CHECK(model && scorefield_atoms(model) == ATOMS);
    CHECK(evaluate(model, NULL, forces, energy) == SCOREFIELD_INVALID);
    SAYS("positions");
    CHECK(evaluate(model, x, NULL, NULL) == SCOREFIELD_OK);
    x[7] = NAN;
    CHECK(evaluate(model, x, forces, energy) == SCOREFIELD_INVALID);
    SAYS("coordinate y of atom 3");
    memcpy(x, x + 3, 3 * sizeof *x);
    x[7] = 0.0;
    CHECK(evaluate(model, x, forces, energy) == SCOREFIELD_FAILED);
    SAYS("overlapping");
    scorefield_batch batch = {sizeof batch - 8, 1, x, NULL};
    scorefield_results results = {sizeof results, forces, NULL, NULL, NULL, NULL, NULL};
    CHECK(scorefield_evaluate(model, &batch, &results) == SCOREFIELD_INVALID);
    SAYS("sizeof(scorefield_batch)");
    batch.size = sizeof batch;
    batch.structures = 0;
    CHECK(scorefield_evaluate(model, &batch, &results) == SCOREFIELD_INVALID);
    batch.structures = (size_t)-1;
    CHECK(scorefield_evaluate(model, &batch, &results) == SCOREFIELD_INVALID);
    batch.structures = 1;
    results.energy_deviation = energy;
    CHECK(scorefield_evaluate(model, &batch, &results) == SCOREFIELD_FAILED);
    SAYS("uncertainty");
    CHECK(scorefield_evaluate(model, NULL, &results) == SCOREFIELD_INVALID);
    CHECK(scorefield_evaluate(model, &batch, NULL) == SCOREFIELD_INVALID);
    CHECK(scorefield_local_range(model) == 0.0);
    SAYS("without a cutoff");
    /* After all that it still works. */
    cluster(x, 0);
    CHECK(evaluate(model, x, forces, energy) == SCOREFIELD_OK && isfinite(energy[0]));
    scorefield_close(model);

    model = scorefield_open("{\"model\": \"lj:sigma=3.405 A,epsilon=0.0103 eV,cutoff=8 A\"}");
    CHECK(model && fabs(scorefield_local_range(model) - 0.8) < 1e-15);
    uint32_t types[2] = {18, 18};
    int32_t list[1] = {1}, counts[1] = {1};
    const int32_t *lists[1] = {list};
    double pair[6] = {0, 0, 0, 0.4, 0, 0}, on[6], atom[1];
    scorefield_domain domain = {sizeof domain, 1, 2, pair, types, counts, lists, -1, 0, NULL, NULL, NULL};
    scorefield_domain_results out = {sizeof out, on, atom, 0, {0}};
    CHECK(scorefield_evaluate_local(model, &domain, &out) == SCOREFIELD_OK);
    CHECK(out.energy == atom[0] && out.energy < 0 && on[0] == -on[3] && on[0] > 0);
    list[0] = 2;
    CHECK(scorefield_evaluate_local(model, &domain, &out) == SCOREFIELD_FAILED);
    SAYS("names atom 2 of 2");
    list[0] = -1;
    CHECK(scorefield_evaluate_local(model, &domain, &out) == SCOREFIELD_FAILED);
    list[0] = 1;
    domain.owned = 3;
    CHECK(scorefield_evaluate_local(model, &domain, &out) == SCOREFIELD_INVALID);
    domain.owned = -1;
    CHECK(scorefield_evaluate_local(model, &domain, &out) == SCOREFIELD_INVALID);
    domain.owned = 1;
    domain.reserved = 1;
    CHECK(scorefield_evaluate_local(model, &domain, &out) == SCOREFIELD_INVALID);
    SAYS("later version");
    domain.reserved = 0;
    pair[4] = INFINITY;
    CHECK(scorefield_evaluate_local(model, &domain, &out) == SCOREFIELD_INVALID);
    pair[4] = 0;
    pair[3] = 0;
    CHECK(scorefield_evaluate_local(model, &domain, &out) == SCOREFIELD_FAILED);
    domain.owned = domain.atoms = 0;
    CHECK(scorefield_evaluate_local(model, &domain, &out) == SCOREFIELD_OK && out.energy == 0.0);
    scorefield_close(model);
}

#define FIELD(type, field) printf("%s.%s %zu\n", #type, #field, offsetof(type, field))
#define SIZE(type) printf("%s %zu\n", #type, sizeof(type))

int main(void) {
    CHECK(scorefield_abi_version() == SCOREFIELD_ABI_VERSION);
    CHECK(strlen(scorefield_version()) >= 5);
    errors();
    threads();
    SIZE(scorefield_batch);
    FIELD(scorefield_batch, structures);
    FIELD(scorefield_batch, positions);
    FIELD(scorefield_batch, cells);
    SIZE(scorefield_results);
    FIELD(scorefield_results, forces);
    FIELD(scorefield_results, energy);
    FIELD(scorefield_results, virial);
    FIELD(scorefield_results, atom_energy);
    FIELD(scorefield_results, energy_deviation);
    FIELD(scorefield_results, force_deviation);
    SIZE(scorefield_domain);
    FIELD(scorefield_domain, owned);
    FIELD(scorefield_domain, atoms);
    FIELD(scorefield_domain, positions);
    FIELD(scorefield_domain, types);
    FIELD(scorefield_domain, neighbour_counts);
    FIELD(scorefield_domain, neighbours);
    FIELD(scorefield_domain, neighbour_mask);
    FIELD(scorefield_domain, reserved);
    FIELD(scorefield_domain, forward);
    FIELD(scorefield_domain, reverse);
    FIELD(scorefield_domain, context);
    SIZE(scorefield_domain_results);
    FIELD(scorefield_domain_results, forces);
    FIELD(scorefield_domain_results, atom_energy);
    FIELD(scorefield_domain_results, energy);
    FIELD(scorefield_domain_results, virial);
    return 0;
}
