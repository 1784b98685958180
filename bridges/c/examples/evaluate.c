/* Energies and forces from C. Built and run by the tests:
 *   cc evaluate.c -I ../include -L ../../../target/release -lscorefield_c -o evaluate
 *   ./evaluate [number of calls to time] */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "scorefield.h"

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    if (scorefield_abi_version() != SCOREFIELD_ABI_VERSION) {
        fprintf(stderr, "the library is of another version than the header\n");
        return 1;
    }
    scorefield_model *model = scorefield_open("{\"model\": \"lj:sigma=3.405 A,epsilon=0.0103 eV\", \"types\": [\"Ar\", \"Ar\"]}");
    if (!model) {
        fprintf(stderr, "%s\n", scorefield_last_error());
        return 1;
    }
    printf("%s\n", scorefield_capabilities(model));

    /* Two structures of two atoms: at the distance of zero energy, and at the minimum. */
    double positions[12] = {0};
    positions[3] = 0.3405;
    positions[9] = 0.3405 * 1.122462048309373;
    double forces[12], energy[2];
    scorefield_batch batch = {.size = sizeof batch, .structures = 2, .positions = positions};
    scorefield_results results = {.size = sizeof results, .forces = forces, .energy = energy};
    if (scorefield_evaluate(model, &batch, &results) != SCOREFIELD_OK) {
        fprintf(stderr, "%s\n", scorefield_last_error());
        scorefield_close(model);
        return 1;
    }
    for (int b = 0; b < 2; b++)
        printf("energy %.12f kJ/mol, force on the second atom %.9f kJ/mol/nm\n", energy[b], forces[6 * b + 3]);

    if (argc > 1) {
        int calls = atoi(argv[1]);
        batch.structures = 1;
        double start = seconds();
        for (int i = 0; i < calls; i++)
            scorefield_evaluate(model, &batch, &results);
        printf("%.3f microseconds per call\n", 1e6 * (seconds() - start) / calls);
    }
    scorefield_close(model);
    return 0;
}
