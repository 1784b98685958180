/* The smallest engine: sends the positions of a structure to one i-PI driver over a UNIX socket, again and again, as an
 * engine written in C would, and prints evaluations per second.
 *
 *   cc -O2 -o ipi_client ipi_client.c
 *   ipi_client PATH COUNT < positions.txt        PATH is the socket's file; positions are in bohr, three per line
 *
 * Each evaluation is one message there (POSDATA and GETFORCE, as i-PI sends them) and one back. Positions move a little
 * every time. The sum of all energies is printed too, so that the work cannot be left out. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MOST 4096

static int driver;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void put(const void *bytes, size_t n) {
    const char *from = bytes;
    while (n > 0) {
        ssize_t sent = write(driver, from, n);
        if (sent <= 0) fail("write");
        from += sent;
        n -= (size_t)sent;
    }
}

static char buffer[1 << 20];
static size_t first, last;

/* At least n bytes, with as few calls of read as there are packets. */
static const char *get(size_t n) {
    if (first == last) first = last = 0;
    while (last - first < n) {
        if (n > sizeof buffer - first) {
            memmove(buffer, buffer + first, last - first);
            last -= first;
            first = 0;
        }
        if (n > sizeof buffer) {
            fprintf(stderr, "the driver's answer is too long\n");
            exit(1);
        }
        ssize_t got = read(driver, buffer + last, sizeof buffer - last);
        if (got <= 0) fail("read");
        last += (size_t)got;
    }
    first += n;
    return buffer + first - n;
}

static int32_t get_int(void) {
    int32_t i;
    memcpy(&i, get(4), 4);
    return i;
}

static void expect(const char *header) {
    if (memcmp(get(12), header, 12) != 0) {
        fprintf(stderr, "%s was expected\n", header);
        exit(1);
    }
}

int main(int argc, char **argv) {
    static double x[3 * MOST], f[3 * MOST];
    static char message[12 + 144 + 4 + sizeof x + 12];
    if (argc != 3) {
        fprintf(stderr, "usage: ipi_client PATH COUNT < positions\n");
        return 2;
    }
    long count = atol(argv[2]);
    int32_t atoms = 0;
    while (atoms < MOST && scanf("%lf %lf %lf", x + 3 * atoms, x + 3 * atoms + 1, x + 3 * atoms + 2) == 3) atoms++;

    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(argv[1]) >= sizeof address.sun_path) return 2;
    strcpy(address.sun_path, argv[1]);
    unlink(argv[1]);
    int door = socket(AF_UNIX, SOCK_STREAM, 0);
    if (door < 0 || bind(door, (struct sockaddr *)&address, sizeof address) || listen(door, 1)) fail("listen");
    driver = accept(door, NULL, NULL);
    if (driver < 0) fail("accept");

    put("STATUS      ", 12);
    expect("NEEDINIT    ");
    char init[12 + 8 + 1] = "INIT        ";
    int32_t length = 1;
    memcpy(init + 16, &length, 4);
    put(init, sizeof init);

    double cells[18] = {0}, edge = 1000.0, sum = 0.0;
    for (int k = 0; k < 3; k++) {
        cells[4 * k] = edge;
        cells[9 + 4 * k] = 1.0 / edge;
    }
    size_t coordinates = 24 * (size_t)atoms, size = 0;
    memcpy(message, "POSDATA     ", 12);
    memcpy(message + 12, cells, 144);
    memcpy(message + 156, &atoms, 4);
    size = 160 + coordinates;
    memcpy(message + size, "GETFORCE    ", 12);
    size += 12;
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long i = 0; i < count; i++) {
        x[0] += i % 2 ? 1e-3 : -1e-3;
        memcpy(message + 160, x, coordinates);
        put(message, size);
        expect("FORCEREADY  ");
        double energy;
        memcpy(&energy, get(8), 8);
        if (get_int() != atoms) return 1;
        memcpy(f, get(coordinates), coordinates);
        get(72);
        get((size_t)get_int());
        sum += energy;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    put("EXIT        ", 12);
    double seconds = (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
    printf("%.1f evaluations/s, mean energy %.12g, first force %.12g\n", (double)count / seconds, sum / (double)count, f[0]);
    unlink(argv[1]);
    return 0;
}
