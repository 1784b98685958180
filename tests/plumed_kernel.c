/* A small stand-in for libplumedKernel.so: a spring between the first two atoms, with its force constant (kJ/mol/nm^2) and length (nm)
 * read from the input. It writes every command to $MOCK_PLUMED_LOG, and ends the program where one comes out of turn. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct plumed {
    int id, natoms, initialised, prepared;
    long step, updates;
    double stiffness, length, bias, energy, *x, *masses, *forces, *box, *virial;
    FILE *log;
};

void *plumed_plumedmain_create(void) {
    static int count;
    struct plumed *p = calloc(1, sizeof *p);
    p->id = count++;
    p->log = fopen(getenv("MOCK_PLUMED_LOG"), "a");
    setvbuf(p->log, NULL, _IOLBF, 1 << 12);
    return p;
}

void plumed_plumedmain_finalize(void *object) {
    struct plumed *p = object;
    fprintf(p->log, "%d finalize %ld\n", p->id, p->updates);
    fclose(p->log);
    free(p);
}

static void out_of_turn(struct plumed *p, const char *key) {
    fprintf(stderr, "mock PLUMED %d: %s out of turn\n", p->id, key);
    exit(42);
}

static void calculate(struct plumed *p) {
    double d[3], r = 0.0;
    for (int a = 0; a < 3; a++) {
        d[a] = p->x[3 + a] - p->x[a];
        r += d[a] * d[a];
    }
    r = sqrt(r);
    p->bias = 0.5 * p->stiffness * (r - p->length) * (r - p->length);
    double slope = p->stiffness * (r - p->length) / r;
    for (int a = 0; a < 3; a++) {
        p->forces[a] += slope * d[a];
        p->forces[3 + a] -= slope * d[a];
        for (int b = 0; b < 3; b++) p->virial[3 * a + b] += slope * d[a] * d[b];
    }
}

void plumed_plumedmain_cmd(void *object, const char *key, const void *value) {
    struct plumed *p = object;
    const double *number = value;
    int is = strcmp(key, "init") == 0;
    if (strcmp(key, "getApiVersion") == 0) {
        *(int *)value = 8;
        fprintf(p->log, "%d %s\n", p->id, key);
    } else if (strncmp(key, "setMD", 5) == 0 && strcmp(key, "setMDEngine") != 0) {
        fprintf(p->log, "%d %s %g\n", p->id, key, *number);
    } else if (strcmp(key, "setTimestep") == 0 || strcmp(key, "setKbT") == 0) {
        fprintf(p->log, "%d %s %.6g\n", p->id, key, *number);
    } else if (strcmp(key, "setMDEngine") == 0 || strcmp(key, "setLogFile") == 0) {
        fprintf(p->log, "%d %s\n", p->id, key);
    } else if (strcmp(key, "setPlumedDat") == 0) {
        FILE *input = fopen(value, "r");
        char name[64];
        if (!input || fscanf(input, "SPRING K=%lf R0=%lf FILE=%63s", &p->stiffness, &p->length, name) != 3) out_of_turn(p, key);
        fclose(input);
        fprintf(p->log, "%d %s %s\n", p->id, key, name);
    } else if (strcmp(key, "setNatoms") == 0) {
        p->natoms = *(const int *)value;
        fprintf(p->log, "%d %s %d\n", p->id, key, p->natoms);
    } else if (strcmp(key, "setRestart") == 0 || strcmp(key, "setRealPrecision") == 0) {
        fprintf(p->log, "%d %s %d\n", p->id, key, *(const int *)value);
    } else if (is) {
        if (p->initialised || p->natoms < 2) out_of_turn(p, key);
        p->initialised = 1;
        fprintf(p->log, "%d init\n", p->id);
    } else if (!p->initialised) {
        out_of_turn(p, key);
    } else if (strcmp(key, "setStepLong") == 0) {
        p->step = *(const long *)value;
        p->prepared = 0;
    } else if (strcmp(key, "setPositions") == 0) {
        p->x = (double *)value;
    } else if (strcmp(key, "setMasses") == 0) {
        p->masses = (double *)value;
    } else if (strcmp(key, "setForces") == 0) {
        p->forces = (double *)value;
    } else if (strcmp(key, "setVirial") == 0) {
        p->virial = (double *)value;
    } else if (strcmp(key, "setBox") == 0) {
        p->box = (double *)value;
    } else if (strcmp(key, "prepareCalc") == 0) {
        if (!p->x || !p->masses || !p->forces || !p->virial) out_of_turn(p, key);
        p->prepared = 1;
    } else if (strcmp(key, "isEnergyNeeded") == 0) {
        if (!p->prepared) out_of_turn(p, key);
        *(int *)value = getenv("MOCK_PLUMED_ENERGY") != NULL;
    } else if (strcmp(key, "setEnergy") == 0) {
        p->energy = *number;
    } else if (strcmp(key, "performCalc") == 0 || strcmp(key, "performCalcNoUpdate") == 0) {
        if (!p->prepared) out_of_turn(p, key);
        p->prepared = 0;
        calculate(p);
        p->updates += key[11] == 0;
        fprintf(p->log, "%d %s %ld %.9g\n", p->id, key, p->step, p->masses[0]);
    } else if (strcmp(key, "getBias") == 0) {
        *(double *)value = p->bias;
    } else {
        out_of_turn(p, key);
    }
}
