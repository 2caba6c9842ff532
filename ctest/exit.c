/*
 * A process may exit while tunnels run, whoever initialised OpenSSL first, however it exits, and after dlclose. Each
 * way is tried AIOT_EXIT_RUNS times (20), each time in a process of its own, whose tunnels connect meanwhile.
 *
 *   exit                     links the library
 *   exit PROGRAM LIBRARY     the ways of PROGRAM, unload.c, which loads the library with dlopen
 */
#include "harness.h"

#include <openssl/ssl.h>
#include <sys/wait.h>
#include <unistd.h>

#define TUNNELS 20

static device_t device;

static void *exit_here(void *unused)
{
    (void)unused;
    exit(0);
    return NULL;
}

static void deinit_at_exit(void)
{
    CHECK_CODE(aiot_tunnel_deinit(&device.handle), STATE_SUCCESS);
}

static void start_tunnels(int delay_us)
{
    char id[16];
    int i;

    device_open(&device);
    device_start(&device);
    for (i = 0; i < TUNNELS; i++) {
        snprintf(id, sizeof(id), "t%d", i);
        CHECK_CODE(add(&device, id, "any"), STATE_SUCCESS);
    }
    usleep((useconds_t)delay_us);
}

/* The child: ends the process in the named way. */
static int child(const char *way, int delay_us)
{
    pthread_t thread;

    if (strstr(way, "ours-first") == NULL) {
        CHECK(OPENSSL_init_ssl(0, NULL) == 1);
    }
    if (strstr(way, "handler") != NULL) {
        atexit(deinit_at_exit);
    }
    start_tunnels(delay_us);
    if (strstr(way, "ours-first") != NULL) {
        CHECK(OPENSSL_init_ssl(0, NULL) == 1);
    }
    if (strncmp(way, "return", 6) == 0) {
        return 0;
    }
    if (strncmp(way, "quick", 5) == 0) {
        quick_exit(0);
    }
    if (strncmp(way, "thread", 6) == 0) {
        CHECK(pthread_create(&thread, NULL, exit_here, NULL) == 0);
        pthread_join(thread, NULL);
    }
    exit(0);
}

/* The programs that end in the named ways, and the library that the second one loads. */
static const char *program, *unloader, *library;

/* Runs a program that ends in the named way. 1: it has ended well. */
static int ends_well(const char *way, int delay_us)
{
    char delay[16];
    int status = 0;
    pid_t process;

    snprintf(delay, sizeof(delay), "%d", delay_us);
    process = fork();
    CHECK(process >= 0);
    if (process == 0) {
        alarm(TIMEOUT_MS / 1000);
        if (strncmp(way, "dlclose", 7) == 0) {
            execl(unloader, unloader, library, way, delay, (char *)NULL);
        } else {
            execl(program, program, way, delay, (char *)NULL);
        }
        _exit(127);
    }
    CHECK(waitpid(process, &status, 0) == process);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void check_ways(const char *const *way)
{
    const char *runs_text = getenv("AIOT_EXIT_RUNS");
    int runs = runs_text != NULL ? atoi(runs_text) : under_checker() ? 2 : 20;
    int i, failed;

    for (; *way != NULL; way++) {
        failed = 0;
        for (i = 0; i < runs; i++) {
            failed += !ends_well(*way, i % 20 * 2500);
        }
        printf("%s: %d of %d failed\n", *way, failed, runs);
        CHECK(failed == 0);
    }
}

static void no_way_to_exit_crashes(void)
{
    static const char *const ways[] = {"exit", "return", "quick_exit", "thread", "exit-handler", "exit-ours-first", NULL};

    check_ways(ways);
}

static void no_way_to_exit_after_dlclose_crashes(void)
{
    static const char *const ways[] = {"dlclose", "dlclose-stopped", "dlclose-return", "dlclose-quick_exit", "dlclose-thread",
                                       "dlclose-again", NULL};

    check_ways(ways);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strchr(argv[1], '/') == NULL) {
        return child(argv[1], atoi(argv[2]));
    }
    program = argv[0];
    if (argc == 3) {
        unloader = argv[1];
        library = argv[2];
        RUN(no_way_to_exit_after_dlclose_crashes);
        return 0;
    }
    RUN(no_way_to_exit_crashes);
    return 0;
}
