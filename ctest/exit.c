/*
 * A process may exit while tunnels run, whoever initialised OpenSSL first, and however it exits. Each way is tried
 * AIOT_EXIT_RUNS times (20), each time in a process of its own, whose tunnels connect with TLS meanwhile.
 */
#include "harness.h"

#include <dlfcn.h>
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

static const char *program;

static void no_way_to_exit_crashes(void)
{
    static const char *const ways[] = {"exit", "return", "quick_exit", "thread", "exit-handler", "exit-ours-first"};
    const char *runs_text = getenv("AIOT_EXIT_RUNS");
    int runs = runs_text != NULL ? atoi(runs_text) : under_checker() ? 2 : 20;
    size_t way;
    int i, crashed;

    for (way = 0; way < sizeof(ways) / sizeof(ways[0]); way++) {
        crashed = 0;
        for (i = 0; i < runs; i++) {
            char delay[16];
            int status = 0;
            pid_t process;

            snprintf(delay, sizeof(delay), "%d", i % 20 * 2500);
            process = fork();
            CHECK(process >= 0);
            if (process == 0) {
                alarm(TIMEOUT_MS / 1000);
                execl(program, program, ways[way], delay, (char *)NULL);
                _exit(127);
            }
            CHECK(waitpid(process, &status, 0) == process);
            if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
                crashed++;
            }
        }
        printf("%s: %d of %d failed\n", ways[way], crashed, runs);
        CHECK(crashed == 0);
    }
}

int main(int argc, char **argv)
{
    if (argc > 2) {
        return child(argv[1], atoi(argv[2]));
    }
    program = argv[0];
    RUN(no_way_to_exit_crashes);
    return 0;
}
