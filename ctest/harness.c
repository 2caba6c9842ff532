#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <time.h>
#include <unistd.h>

/* How many times slower a program under a checker may be. */
#define CHECKER_FACTOR 50

/* The library's log of this process, for scripts/scan-logs. A test that sets its own log callback
 * diverts the lines from it. */
static FILE *kept;

static int32_t keep_line(int32_t code, char *message)
{
    (void)code;
    fputs(message, kept);
    return 0;
}

__attribute__((constructor)) static void keep_log(void)
{
    const char *directory = getenv("AIOT_TUNNEL_TEST_LOGS");
    char path[4096];

    if (directory == NULL || *directory == '\0') {
        return;
    }
    snprintf(path, sizeof(path), "%s/%s-%d.log", directory, program_invocation_short_name,
             (int)getpid());
    kept = fopen(path, "ae");
    CHECK(kept != NULL);
    setvbuf(kept, NULL, _IOLBF, 0);
    CHECK_CODE(aiot_tunnel_set_logcb(keep_line), STATE_SUCCESS);
}

void fail(const char *file, int line, const char *what)
{
    fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
    exit(1);
}

void fail_code(const char *file, int line, const char *call, int32_t code, const char *expected)
{
    fprintf(stderr, "%s:%d: %s is -0x%04X, not %s\n", file, line, call, (unsigned int)-code,
            expected);
    exit(1);
}

int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

int under_checker(void)
{
    const char *wrapper = getenv("AIOT_TEST_WRAPPER");

#ifdef __SANITIZE_ADDRESS__
    return 1;
#endif
    return wrapper != NULL && *wrapper != '\0';
}

int64_t promised_ms(int64_t ms)
{
    return under_checker() ? ms * CHECKER_FACTOR : ms;
}

unsigned int peer_number(const char *name)
{
    const char *text = getenv(name);

    if (text == NULL) {
        fprintf(stderr, "%s is not set: run this program by peer/peer.py\n", name);
        exit(1);
    }
    return (unsigned int)strtoul(text, NULL, 10);
}

int peer_has_tls(void)
{
    return peer_number("PEER_TLS") == 1;
}

char *peer_file(const char *name, uint32_t *len)
{
    enum { MOST = 65536 };
    const char *path = getenv(name);
    char *text = malloc(MOST);
    FILE *file;

    CHECK(path != NULL && text != NULL);
    file = fopen(path, "rb");
    CHECK(file != NULL);
    *len = (uint32_t)fread(text, 1, MOST - 1, file);
    text[*len] = '\0';
    fclose(file);
    return text;
}

int count_of(const char *directory)
{
    char path[64];
    int count = 0;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/self/%s", directory);
    dir = opendir(path);
    CHECK(dir != NULL);
    while (readdir(dir) != NULL) {
        count++;
    }
    closedir(dir);
    return count;
}

void wait_for_at_most(const char *directory, int count)
{
    int64_t deadline = now_ms() + TIMEOUT_MS;

    while (count_of(directory) > count) {
        CHECK(now_ms() < deadline);
        usleep(1000);
    }
}

void record(void *handle, const aiot_tunnel_event_t *event, void *userdata)
{
    recorder_t *recorder = userdata;
    seen_t *seen;

    pthread_mutex_lock(&recorder->lock);
    CHECK(recorder->count < (int)(sizeof(recorder->seen) / sizeof(recorder->seen[0])));
    seen = &recorder->seen[recorder->count++];
    seen->type = event->type;
    memcpy(seen->tunnel_id, event->tunnel_id, sizeof(seen->tunnel_id));
    seen->thread = pthread_self();
    pthread_cond_broadcast(&recorder->changed);
    pthread_mutex_unlock(&recorder->lock);
    if (recorder->then != NULL) {
        recorder->then(handle, event);
    }
}

seen_t recorded(recorder_t *recorder, int index)
{
    struct timespec deadline;
    seen_t seen;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += TIMEOUT_MS / 1000;
    pthread_mutex_lock(&recorder->lock);
    while (recorder->count <= index) {
        CHECK(pthread_cond_timedwait(&recorder->changed, &recorder->lock, &deadline) == 0);
    }
    seen = recorder->seen[index];
    pthread_mutex_unlock(&recorder->lock);
    return seen;
}

int recorded_count(recorder_t *recorder)
{
    int count;

    pthread_mutex_lock(&recorder->lock);
    count = recorder->count;
    pthread_mutex_unlock(&recorder->lock);
    return count;
}

void set_handler(void *handle, aiot_tunnel_event_handler_t handler)
{
    CHECK_CODE(aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_EVENT_HANDLER, (void *)handler),
               STATE_SUCCESS);
}

/* The credential and its strings are overwritten and freed before this returns. */
void set_peer_credential(void *handle)
{
    aiot_sysdep_network_cred_t *cred = calloc(1, sizeof(*cred));
    char *ca = NULL;

    CHECK(cred != NULL);
    if (peer_has_tls()) {
        ca = peer_file("PEER_CA", &cred->x509_server_cert_len);
        cred->option = AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA;
        cred->sni_enabled = 1;
        cred->x509_server_cert = ca;
    }
    CHECK_CODE(aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_NETWORK_CRED, cred), STATE_SUCCESS);
    if (ca != NULL) {
        memset(ca, 'x', strlen(ca));
    }
    memset(cred, 0xFF, sizeof(*cred));
    free(ca);
    free(cred);
}

int32_t add_service(void *handle, const char *type, const char *ip, unsigned int port)
{
    aiot_tunnel_service_t service;

    memset(&service, 0, sizeof(service));
    snprintf(service.type, sizeof(service.type), "%s", type);
    snprintf(service.ip, sizeof(service.ip), "%s", ip);
    service.port = port;
    return aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_ADD_SERVICE, &service);
}

void device_open(device_t *device)
{
    memset(device, 0, sizeof(*device));
    pthread_mutex_init(&device->events.lock, NULL);
    pthread_cond_init(&device->events.changed, NULL);
    device->handle = aiot_tunnel_init();
    CHECK(device->handle != NULL);
    set_handler(device->handle, record);
    CHECK_CODE(aiot_tunnel_setopt(device->handle, AIOT_TUNNELOPT_USERDATA, &device->events),
               STATE_SUCCESS);
    set_peer_credential(device->handle);
    CHECK_CODE(
        add_service(device->handle, "_ECHO", "127.0.0.1", peer_number("PEER_ECHO_PORT")), 0);
    CHECK_CODE(
        add_service(device->handle, "_RESET", "127.0.0.1", peer_number("PEER_RESET_PORT")), 0);
}

void device_start(device_t *device)
{
    CHECK(pthread_create(&device->thread, NULL, aiot_tunnel_start, device->handle) == 0);
}

void *joined(pthread_t thread)
{
    void *result = NULL;

    /* Not pthread_timedjoin_np: race checkers do not recognise it as a join. */
    alarm(TIMEOUT_MS / 1000);
    CHECK(pthread_join(thread, &result) == 0);
    alarm(0);
    return result;
}

void device_close(device_t *device)
{
    CHECK_CODE(aiot_tunnel_stop(device->handle), STATE_SUCCESS);
    CHECK(joined(device->thread) == NULL);
    CHECK_CODE(aiot_tunnel_deinit(&device->handle), STATE_SUCCESS);
    CHECK(device->handle == NULL);
}

int32_t connect_tunnel(int32_t (*call)(void *, char *, aiot_tunnel_connect_param_t *),
                       void *handle, const char *id, const char *scenario, const char *token)
{
    char name[256], host[] = "127.0.0.1", port[16], path[256], secret[128];
    aiot_tunnel_connect_param_t params;
    int32_t code;

    snprintf(name, sizeof(name), "%s", id);
    snprintf(port, sizeof(port), "%u", peer_number("PEER_PORT"));
    snprintf(path, sizeof(path), "/tunnel/%s/dest?do=%s", id, scenario);
    snprintf(secret, sizeof(secret), "%s", token);
    params.host = host;
    params.port = port;
    params.path = path;
    params.token = secret;
    code = call(handle, name, &params);
    /* The library has copied everything, so the originals may change. */
    memset(name, 'x', sizeof(name));
    memset(path, 'x', sizeof(path));
    memset(secret, 'x', sizeof(secret));
    memset(&params, 0xFF, sizeof(params));
    return code;
}

int32_t add(device_t *device, const char *id, const char *scenario)
{
    return connect_tunnel(aiot_tunnel_add, device->handle, id, scenario, getenv("PEER_TOKEN"));
}

int32_t update(device_t *device, const char *id, const char *scenario)
{
    return connect_tunnel(aiot_tunnel_update, device->handle, id, scenario, getenv("PEER_TOKEN"));
}
