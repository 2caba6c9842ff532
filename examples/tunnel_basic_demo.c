/*
 * The remote-login process. It keeps tunnels to the cloud, through which an operator reaches a
 * local service, usually sshd. The business process, which speaks MQTT, tells it over a System V
 * message queue which tunnels to open and close.
 *
 *     tunnel_basic_demo [-p PORT] [-c CA_FILE] [-k QUEUE_KEY] [-s SERVICE_TYPE]
 *     tunnel_basic_demo [PORT [CA_FILE [QUEUE_KEY]]]
 *
 * It has five steps: initialise, configure, start the tunnel thread, listen for messages, and
 * execute each message (demo_tunnel_do_operation). SIGINT and SIGTERM stop it.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <time.h>
#include <unistd.h>

#include "aiot_state_api.h"
#include "aiot_sysdep_api.h"
#include "aiot_tunnel_api.h"

#define DEFAULT_PORT 22
#define DEFAULT_SERVICE "_SSH"
#define DEFAULT_QUEUE_KEY 1234
#define MESSAGE_TYPE 1
#define MAX_CA_LEN (1024 * 1024)

/* Time between two attempts to open a queue that was removed. */
#define REOPEN_MS 1000

/* The message of the business process. Strings are NUL-terminated; the library checks that. */
typedef struct {
    int32_t operation; /* 1 add, 0 delete, 2 update */
    char tunnel_id[128];
    char host[128];
    char port[128];
    char path[128];
    char token[128];
} demo_tunnel_info_t;

typedef struct {
    long type;
    /* One byte more than a valid message, so that a longer one is noticed. */
    char data[sizeof(demo_tunnel_info_t) + 1];
} demo_message_t;

typedef struct {
    unsigned int port;
    const char *service_type;
    const char *ca_file;
    key_t queue_key;
} demo_settings_t;

typedef struct {
    void *tunnel_handle;
    key_t queue_key;
    int queue;   /* protected by lock, except in the listen thread, which alone changes it */
    int created; /* this process has created the queue */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int stopping; /* protected by lock: the listen thread is to end */
} demo_listener_t;

extern aiot_sysdep_portfile_t g_aiot_sysdep_portfile;

static int32_t demo_state_logcb(int32_t code, char *message)
{
    (void)code;
    fputs(message, stdout);
    return 0;
}

/* Only the tunnel thread calls this. */
static void demo_tunnel_event_cb(void *handle, const aiot_tunnel_event_t *event, void *userdata)
{
    const char *name = "unknown event";

    (void)handle;
    (void)userdata;
    switch (event->type) {
    case AIOT_TUNNEL_EVT_CONNECT:
        name = "AIOT_TUNNEL_EVT_CONNECT";
        break;
    case AIOT_TUNNEL_EVT_DISCONNECT:
        name = "AIOT_TUNNEL_EVT_DISCONNECT";
        break;
    case AIOT_TUNNEL_EVT_EXPIRED:
        /* A real device asks the cloud for a new token here and calls aiot_tunnel_update. */
        name = "AIOT_TUNNEL_EVT_EXPIRED";
        break;
    }
    printf("ra_event_cb %s %s \n", name, event->tunnel_id);
}

/* Step 5: opens, closes or updates a tunnel. */
static void demo_tunnel_do_operation(void *tunnel_handle, char *data, int32_t len)
{
    demo_tunnel_info_t info;
    aiot_tunnel_connect_param_t params;
    int32_t code = STATE_SUCCESS;

    if (len != (int32_t)sizeof(info)) {
        printf("message dropped: %d bytes, not %d\n", (int)len, (int)sizeof(info));
        return;
    }
    memcpy(&info, data, sizeof(info));
    memset(&params, 0, sizeof(params));
    params.host = info.host;
    params.port = info.port;
    params.path = info.path;
    params.token = info.token;

    switch (info.operation) {
    case 1:
        code = aiot_tunnel_add(tunnel_handle, info.tunnel_id, &params);
        break;
    case 0:
        code = aiot_tunnel_delete(tunnel_handle, info.tunnel_id);
        break;
    case 2:
        code = aiot_tunnel_update(tunnel_handle, info.tunnel_id, &params);
        break;
    default:
        printf("message dropped: unknown operation %d\n", (int)info.operation);
    }
    if (code != STATE_SUCCESS) {
        printf("operation %d failed: -0x%04X\n", (int)info.operation, (unsigned int)-code);
    }
    /* The token is no longer needed. */
    explicit_bzero(&info, sizeof(info));
}

/* Checks a queue that already existed; 1 when it is safe. A process that can write to the queue can
 * open a tunnel to any host. The owner can always write, so it must be root or this user; for
 * others the mode decides, and it is narrowed to 0600. */
static int demo_queue_is_safe(int queue)
{
    struct msqid_ds status;
    uid_t self = geteuid();

    if (msgctl(queue, IPC_STAT, &status) != 0) {
        perror("msgctl");
        return 0;
    }
    if ((status.msg_perm.uid != 0 && status.msg_perm.uid != self) ||
        (status.msg_perm.cuid != 0 && status.msg_perm.cuid != self)) {
        printf("the message queue belongs to uid %u: remove it with ipcrm\n",
               (unsigned int)(status.msg_perm.uid != self ? status.msg_perm.uid
                                                          : status.msg_perm.cuid));
        return 0;
    }
    if ((status.msg_perm.mode & 0177) == 0) {
        return 1;
    }
    printf("warning: message queue of mode %04o, now 0600\n",
           (unsigned int)status.msg_perm.mode & 0777);
    status.msg_perm.mode &= 0600;
    if (msgctl(queue, IPC_SET, &status) != 0) {
        perror("msgctl");
        return 0;
    }
    return 1;
}

/* Opens the queue, or creates it for this user only. */
static int demo_queue_open(key_t key, int *created)
{
    int queue = msgget(key, IPC_CREAT | IPC_EXCL | 0600);

    *created = queue >= 0;
    if (queue < 0 && errno == EEXIST) {
        queue = msgget(key, 0);
        if (queue >= 0 && !demo_queue_is_safe(queue)) {
            errno = EPERM;
            queue = -1;
        }
    }
    return queue;
}

static int demo_listener_is_stopping(demo_listener_t *listener)
{
    int stopping;

    pthread_mutex_lock(&listener->lock);
    stopping = listener->stopping;
    pthread_mutex_unlock(&listener->lock);
    return stopping;
}

/* Waits for this time, or until `changed` is signalled. The lock is held. */
static void demo_wait(demo_listener_t *listener, long ms)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += ms % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_nsec -= 1000000000L;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&listener->changed, &listener->lock, &until);
}

/* The queue is gone; some systems remove a user's queues at logout. The tunnels stay open meanwhile,
 * because they may be the only way to this device. Tries until there is a queue again; 0 when the
 * listen thread is to end instead. */
static int demo_queue_reopen(demo_listener_t *listener)
{
    int reopened = 0;

    pthread_mutex_lock(&listener->lock);
    while (!listener->stopping && !reopened) {
        demo_wait(listener, REOPEN_MS);
        if (!listener->stopping) {
            int created = 0, queue = demo_queue_open(listener->queue_key, &created);

            reopened = queue >= 0;
            if (reopened) {
                listener->queue = queue;
                listener->created = created;
            }
        }
    }
    pthread_mutex_unlock(&listener->lock);
    return reopened;
}

/* Step 4: sleeps in msgrcv until a message arrives. */
static void *demo_tunnel_listen_task(void *arg)
{
    demo_listener_t *listener = arg;
    demo_message_t message;
    int ended = 0, state;

    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    printf("demo_tunnel_listen_task Listen \n");
    while (!ended) {
        ssize_t len;

        /* The stop cancels the thread, which must hold no lock then. */
        pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
        len = msgrcv(listener->queue, &message, sizeof(message.data), MESSAGE_TYPE, MSG_NOERROR);
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
        if (demo_listener_is_stopping(listener)) {
            break;
        }
        if (len >= 0) {
            printf("msg recv data len %d, \n", (int)len);
            demo_tunnel_do_operation(listener->tunnel_handle, message.data, (int32_t)len);
        } else if (errno != EINTR) {
            perror("msgrcv");
            ended = !demo_queue_reopen(listener);
            if (!ended) {
                printf("demo_tunnel_listen_task Listen again\n");
            }
        }
        explicit_bzero(&message, sizeof(message));
    }
    explicit_bzero(&message, sizeof(message));
    return NULL;
}

/* Ends the listen thread and waits for it. Cancellation ends its msgrcv. A message would not always:
 * the queue may be full, or its owner may have taken the right to write. */
static void demo_listener_stop(demo_listener_t *listener, pthread_t thread)
{
    pthread_mutex_lock(&listener->lock);
    listener->stopping = 1;
    pthread_cond_broadcast(&listener->changed);
    pthread_mutex_unlock(&listener->lock);
    pthread_cancel(thread);
    pthread_join(thread, NULL);
}

/* Reads a file into a NUL-terminated buffer, which the caller frees. NULL if it cannot be read. */
static char *demo_read_file(const char *path, uint32_t *len)
{
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    size_t room = 0;
    size_t got = 0;
    size_t part = 1;

    if (file == NULL) {
        return NULL;
    }
    /* The file may be a pipe, whose size is unknown. */
    while (part > 0 && got < MAX_CA_LEN) {
        if (room - got < 2) {
            char *grown = realloc(text, 2 * room + 4096);
            if (grown == NULL) {
                free(text);
                fclose(file);
                return NULL;
            }
            text = grown;
            room = 2 * room + 4096;
        }
        part = fread(text + got, 1, room - got - 1, file);
        got += part;
    }
    text[got] = '\0';
    fclose(file);
    *len = (uint32_t)got;
    return text;
}

static int32_t demo_set_credential(void *tunnel_handle, const char *ca_file)
{
    aiot_sysdep_network_cred_t cred;
    char *ca = NULL;
    int32_t code;

    memset(&cred, 0, sizeof(cred));
    if (ca_file == NULL) {
        printf("warning: no CA file, so tunnels are neither encrypted nor authenticated\n");
        cred.option = AIOT_SYSDEP_NETWORK_CRED_NONE;
    } else {
        ca = demo_read_file(ca_file, &cred.x509_server_cert_len);
        if (ca == NULL) {
            perror(ca_file);
            return STATE_PORT_TLS_INVALID_SERVER_CERT;
        }
        cred.option = AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA;
        cred.max_tls_fragment = 16384;
        cred.sni_enabled = 1;
        cred.x509_server_cert = ca;
    }
    code = aiot_tunnel_setopt(tunnel_handle, AIOT_TUNNELOPT_NETWORK_CRED, (void *)&cred);
    free(ca);
    return code;
}

/* Step 2: credential, event handler, local services. */
static int32_t demo_configure(void *tunnel_handle, const demo_settings_t *settings)
{
    aiot_tunnel_service_t services[1];
    int32_t code = demo_set_credential(tunnel_handle, settings->ca_file);
    size_t i;

    if (code != STATE_SUCCESS) {
        return code;
    }
    /* POSIX, unlike ISO C, allows the cast from a function pointer to void *. */
    code = aiot_tunnel_setopt(tunnel_handle, AIOT_TUNNELOPT_EVENT_HANDLER,
                              __extension__(void *) demo_tunnel_event_cb);
    if (code != STATE_SUCCESS) {
        return code;
    }
    memset(services, 0, sizeof(services));
    snprintf(services[0].type, sizeof(services[0].type), "%s", settings->service_type);
    snprintf(services[0].ip, sizeof(services[0].ip), "127.0.0.1");
    services[0].port = settings->port;
    for (i = 0; i < sizeof(services) / sizeof(services[0]) && code == STATE_SUCCESS; i++) {
        code = aiot_tunnel_setopt(tunnel_handle, AIOT_TUNNELOPT_ADD_SERVICE, (void *)&services[i]);
    }
    return code;
}

/* Steps 4 and 5, until a signal arrives; 0 on success. */
static int demo_listen(void *tunnel_handle, key_t key, const sigset_t *signals)
{
    demo_listener_t listener = {tunnel_handle, key, -1, 0, PTHREAD_MUTEX_INITIALIZER,
                                PTHREAD_COND_INITIALIZER, 0};
    pthread_t thread;
    int received = 0, error;

    listener.queue = demo_queue_open(key, &listener.created);
    if (listener.queue < 0) {
        perror("msgget");
        return -1;
    }
    error = pthread_create(&thread, NULL, demo_tunnel_listen_task, &listener);
    if (error == 0) {
        sigwait(signals, &received);
        demo_listener_stop(&listener, thread);
    } else {
        printf("create demo_tunnel_listen_task error!\n");
    }
    if (listener.created) {
        msgctl(listener.queue, IPC_RMID, NULL);
    }
    return error == 0 ? 0 : -1;
}

/* Steps 3 to 5; 0 on success. */
static int demo_run(void *tunnel_handle, const demo_settings_t *settings)
{
    pthread_t tunnel_thread;
    sigset_t signals;
    void *result = NULL;
    int error;

    /* Blocked in all threads, also the library's, so that sigwait receives the signals. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);

    if (pthread_create(&tunnel_thread, NULL, aiot_tunnel_start, tunnel_handle) != 0) {
        printf("create aiot_tunnel_start error!\n");
        return -1;
    }
    error = demo_listen(tunnel_handle, settings->queue_key, &signals);
    aiot_tunnel_stop(tunnel_handle);
    pthread_join(tunnel_thread, &result);
    if (result != NULL) {
        printf("aiot_tunnel_start failed: -0x%04X\n", (unsigned int)-*(int32_t *)result);
        error = -1;
    }
    return error;
}

static void usage(FILE *to, const char *program)
{
    fprintf(to,
            "usage: %s [OPTIONS] [PORT [CA_FILE [QUEUE_KEY]]]\n"
            "  -p, --port PORT      port of the local service (default %d)\n"
            "  -c, --ca FILE        CA certificates in PEM; without it: plain text\n"
            "  -k, --key KEY        key of the message queue (default %d; decimal or 0x)\n"
            "  -s, --service TYPE   name of the service (default %s)\n"
            "  -h, --help           this text\n",
            program, DEFAULT_PORT, DEFAULT_QUEUE_KEY, DEFAULT_SERVICE);
}

/* Parses a number from least to most; -1 if the text is not one. */
static int64_t parse_number(const char *text, int64_t least, int64_t most)
{
    int base = strncmp(text, "0x", 2) == 0 || strncmp(text, "0X", 2) == 0 ? 16 : 10;
    char *end = NULL;
    long long number;

    errno = 0;
    number = strtoll(text, &end, base);
    if (errno != 0 || end == text || *end != '\0' || number < least || number > most) {
        return -1;
    }
    return number;
}

/* set_port and set_queue_key return 0 if the text is valid, otherwise -1. */
static int set_port(demo_settings_t *settings, const char *text)
{
    int64_t port = parse_number(text, 1, 65535);

    settings->port = (unsigned int)port;
    return port < 0 ? -1 : 0;
}

static int set_queue_key(demo_settings_t *settings, const char *text)
{
    /* Key 0 is IPC_PRIVATE: a queue that no other process can find. */
    int64_t key = parse_number(text, 1, INT32_MAX);

    settings->queue_key = (key_t)key;
    return key < 0 ? -1 : 0;
}

/* 0: continue; 1: help was requested; -1: the arguments are wrong. */
static int parse_arguments(int argc, char **argv, demo_settings_t *settings)
{
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'},    {"ca", required_argument, NULL, 'c'},
        {"key", required_argument, NULL, 'k'},     {"service", required_argument, NULL, 's'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
    };
    int error = 0, option;

    while ((option = getopt_long(argc, argv, "p:c:k:s:h", options, NULL)) != -1) {
        switch (option) {
        case 'p':
            error |= set_port(settings, optarg);
            break;
        case 'c':
            settings->ca_file = optarg;
            break;
        case 'k':
            error |= set_queue_key(settings, optarg);
            break;
        case 's':
            settings->service_type = optarg;
            error |= strlen(optarg) < sizeof(((aiot_tunnel_service_t *)0)->type) ? 0 : -1;
            break;
        case 'h':
            return 1;
        default:
            return -1;
        }
    }
    if (optind < argc) {
        error |= set_port(settings, argv[optind++]);
    }
    if (optind < argc) {
        settings->ca_file = argv[optind++];
    }
    if (optind < argc) {
        error |= set_queue_key(settings, argv[optind++]);
    }
    return optind < argc ? -1 : error;
}

int main(int argc, char **argv)
{
    demo_settings_t settings = {DEFAULT_PORT, DEFAULT_SERVICE, NULL, DEFAULT_QUEUE_KEY};
    void *tunnel_handle;
    int error;

    switch (parse_arguments(argc, argv, &settings)) {
    case 0:
        break;
    case 1:
        usage(stdout, argv[0]);
        return 0;
    default:
        usage(stderr, argv[0]);
        return 2;
    }
    /* Line buffering, so that a reader of a pipe sees each line at once. */
    setvbuf(stdout, NULL, _IOLBF, 0);
    aiot_sysdep_set_portfile(&g_aiot_sysdep_portfile);
    aiot_state_set_logcb(demo_state_logcb);

    /* Step 1: create an instance with default settings. */
    tunnel_handle = aiot_tunnel_init();
    if (tunnel_handle == NULL) {
        printf("aiot_tunnel_init failed\n");
        return 1;
    }
    error = demo_configure(tunnel_handle, &settings);
    if (error != STATE_SUCCESS) {
        printf("aiot_tunnel_setopt failed: -0x%04X\n", (unsigned int)-error);
    } else {
        error = demo_run(tunnel_handle, &settings);
    }
    aiot_tunnel_deinit(&tunnel_handle);
    return error == 0 ? 0 : 1;
}
