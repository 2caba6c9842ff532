/*
 * One allocation fails. Without memory, the Rust part of the library ends the process with abort, as it
 * is documented. Everything else reports an error or tries again. Run with inject.c preloaded.
 */
#include "harness.h"

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* Number of calls that fail, each in a process of its own. A process makes more of them; these cover
 * the credential, the start of the threads and the first part of a handshake. */
#define CASES 270

static void (*inject_arm)(const char *function, int error, int skip, int times);

/* Number of TLS handshakes that failed. */
static atomic_int refused;

static int32_t log_line(int32_t code, char *message)
{
    (void)message;
    refused += code == STATE_PORT_TLS_INVALID_HANDSHAKE;
    return 0;
}

/* A device's life from init to deinit. */
static int live(int failing)
{
    aiot_sysdep_network_cred_t cred;
    device_t device;
    char *ca = NULL;

    memset(&device, 0, sizeof(device));
    memset(&cred, 0, sizeof(cred));
    pthread_mutex_init(&device.events.lock, NULL);
    pthread_cond_init(&device.events.changed, NULL);
    if (peer_has_tls()) {
        ca = peer_file("PEER_CA", &cred.x509_server_cert_len);
        cred.option = AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA;
        cred.sni_enabled = 1;
        cred.x509_server_cert = ca;
    }
    CHECK_CODE(aiot_state_set_logcb(log_line), STATE_SUCCESS);
    inject_arm("malloc", ENOMEM, failing, 1);
    device.handle = aiot_tunnel_init();
    if (device.handle == NULL) {
        return 0;
    }
    set_handler(device.handle, record);
    CHECK_CODE(aiot_tunnel_setopt(device.handle, AIOT_TUNNELOPT_USERDATA, &device.events),
               STATE_SUCCESS);
    if (aiot_tunnel_setopt(device.handle, AIOT_TUNNELOPT_NETWORK_CRED, &cred) != STATE_SUCCESS) {
        /* The caller may try again. If the memory was missing when OpenSSL was set up, no later call
         * can succeed: OpenSSL does not set itself up again. */
        if (aiot_tunnel_setopt(device.handle, AIOT_TUNNELOPT_NETWORK_CRED, &cred) !=
            STATE_SUCCESS) {
            return 0;
        }
    }
    free(ca);
    if (pthread_create(&device.thread, NULL, aiot_tunnel_start, device.handle) != 0) {
        device_start(&device);
    }
    CHECK_CODE(add(&device, "t1", "any"), STATE_SUCCESS);
    /* If the memory was missing when OpenSSL was set up, no handshake can succeed. The device tries
     * again, and obeys. */
    while (recorded_count(&device.events) == 0 && refused < 2) {
        usleep(1000);
    }
    inject_arm("", 0, 0, 0);
    device_close(&device);
    return 0;
}

static void one_failure_aborts_is_reported_or_is_overcome(void)
{
    int failing, aborted = 0, status;

    for (failing = 0; failing < CASES; failing++) {
        pid_t child;

        fflush(stdout);
        child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            struct rlimit none = {0, 0};

            CHECK(setrlimit(RLIMIT_CORE, &none) == 0);
            /* The message of an abort is of no interest here. */
            CHECK(freopen("/dev/null", "w", stderr) != NULL);
            alarm(TIMEOUT_MS / 1000);
            _exit(live(failing));
        }
        CHECK(waitpid(child, &status, 0) == child);
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT) {
            aborted++;
            continue;
        }
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            printf("call %d: status 0x%x\n", failing, (unsigned int)status);
            CHECK(!"a failed allocation is survived, or aborts");
        }
    }
    printf("%d of %d aborted\n", aborted, CASES);
}

int main(void)
{
    *(void **)&inject_arm = dlsym(RTLD_DEFAULT, "inject_arm");
    if (inject_arm == NULL) {
        fprintf(stderr, "run this program with inject.c preloaded\n");
        return 1;
    }
    RUN(one_failure_aborts_is_reported_or_is_overcome);
    return 0;
}
