/*
 * Firmware as it is written against the Link SDK, with only the three headers of the SDK: five
 * steps, two threads, 644-byte messages. It represents programs that must work unchanged, so it is
 * compiled as C99 and as C++17 and does not use the harness. A third thread takes the part of the
 * business process.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <time.h>

#include "aiot_state_api.h"
#include "aiot_sysdep_api.h"
#include "aiot_tunnel_api.h"

extern aiot_sysdep_portfile_t g_aiot_sysdep_portfile;

typedef struct {
    int32_t operation;
    char tunnel_id[128];
    char host[128];
    char port[128];
    char path[128];
    char token[128];
} tunnel_info_t;

typedef struct {
    long type;
    tunnel_info_t info;
} message_t;

static pthread_t g_tunnel_thread;
static pthread_t g_switch_thread;
static int g_queue;

/* For the business process, which waits for events. Real firmware has nothing like it. */
static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t g_changed = PTHREAD_COND_INITIALIZER;
static int g_events[3];

static int32_t state_logcb(int32_t code, char *message)
{
    (void)code;
    printf("%s", message);
    return 0;
}

static void tunnel_event_cb(void *handle, const aiot_tunnel_event_t *event, void *userdata)
{
    (void)handle;
    (void)userdata;
    switch (event->type) {
    case AIOT_TUNNEL_EVT_CONNECT:
        printf("ra_event_cb AIOT_TUNNEL_EVT_CONNECT %s \n", event->tunnel_id);
        break;
    case AIOT_TUNNEL_EVT_DISCONNECT:
        printf("ra_event_cb AIOT_TUNNEL_EVT_DISCONNECT %s \n", event->tunnel_id);
        break;
    case AIOT_TUNNEL_EVT_EXPIRED:
        printf("ra_event_cb AIOT_TUNNEL_EVT_EXPIRED %s \n", event->tunnel_id);
        break;
    default:
        break;
    }
    pthread_mutex_lock(&g_lock);
    g_events[event->type]++;
    pthread_cond_broadcast(&g_changed);
    pthread_mutex_unlock(&g_lock);
}

static void tunnel_do_operation(void *tunnel_handle, char *data, int32_t len)
{
    tunnel_info_t *info = (tunnel_info_t *)data;
    aiot_tunnel_connect_param_t params;

    if (len != sizeof(tunnel_info_t)) {
        return;
    }
    memset(&params, 0, sizeof(params));
    params.host = info->host;
    params.port = info->port;
    params.path = info->path;
    params.token = info->token;

    if (1 == info->operation) {
        aiot_tunnel_add(tunnel_handle, info->tunnel_id, &params);
    } else if (0 == info->operation) {
        aiot_tunnel_delete(tunnel_handle, info->tunnel_id);
    } else if (2 == info->operation) {
        aiot_tunnel_update(tunnel_handle, info->tunnel_id, &params);
    }
}

static void *listen_task(void *tunnel_handle)
{
    message_t message;

    printf("demo_tunnel_listen_task Listen \n");
    for (;;) {
        int len = (int)msgrcv(g_queue, &message, sizeof(message.info), 1, 0);

        if (len <= 0) {
            break;
        }
        printf("msg recv data len %d, \n", len);
        tunnel_do_operation(tunnel_handle, (char *)&message.info, len);
    }
    return NULL;
}

/* The business process ------------------------------------------------------------------ */

static void send_operation(int32_t operation, const char *path)
{
    message_t message;

    memset(&message, 0, sizeof(message));
    message.type = 1;
    message.info.operation = operation;
    strcpy(message.info.tunnel_id, "4a2f0000-0000-0000-b41c-4c601630e51a");
    strcpy(message.info.host, "localhost");
    strncpy(message.info.port, getenv("PEER_PORT"), sizeof(message.info.port) - 1);
    strncpy(message.info.path, path, sizeof(message.info.path) - 1);
    strncpy(message.info.token, getenv("PEER_TOKEN"), sizeof(message.info.token) - 1);
    if (msgsnd(g_queue, &message, sizeof(message.info), 0) != 0) {
        perror("msgsnd");
        exit(1);
    }
}

static void wait_for(aiot_tunnel_event_type type, int count)
{
    struct timespec deadline;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 60;
    pthread_mutex_lock(&g_lock);
    while (g_events[type] < count) {
        if (pthread_cond_timedwait(&g_changed, &g_lock, &deadline) != 0) {
            printf("event %d has not come %d times\n", (int)type, count);
            exit(1);
        }
    }
    pthread_mutex_unlock(&g_lock);
}

static void business_process(void)
{
    send_operation(1, "/tunnel/t/dest?do=idle");
    wait_for(AIOT_TUNNEL_EVT_CONNECT, 1);
    send_operation(2, "/tunnel/t/dest?do=echo");
    wait_for(AIOT_TUNNEL_EVT_CONNECT, 2);
    /* The peer checks the service's echo and ends the tunnel with 4001. */
    wait_for(AIOT_TUNNEL_EVT_EXPIRED, 1);
    send_operation(2, "/tunnel/t/dest?do=idle");
    wait_for(AIOT_TUNNEL_EVT_CONNECT, 3);
    send_operation(0, "");
    wait_for(AIOT_TUNNEL_EVT_DISCONNECT, 3);
}

/* --------------------------------------------------------------------------------------- */

static char g_ca[65536];

int main(void)
{
    aiot_tunnel_service_t services[] = {
        {"_SSH", "127.0.0.1", 22},
        {"_ECHO", "127.0.0.1", (unsigned int)atoi(getenv("PEER_ECHO_PORT"))},
    };
    aiot_sysdep_network_cred_t cred;
    void *tunnel_handle;
    void *result = NULL;
    pthread_attr_t attr;
    FILE *file = fopen(getenv("PEER_CA"), "r");
    size_t i;

    if (file == NULL || fread(g_ca, 1, sizeof(g_ca) - 1, file) == 0) {
        printf("no CA\n");
        return 1;
    }
    fclose(file);
    aiot_sysdep_set_portfile(&g_aiot_sysdep_portfile);
    aiot_state_set_logcb(state_logcb);

    memset(&cred, 0, sizeof(cred));
    cred.option = AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA;
    cred.max_tls_fragment = 16384;
    cred.sni_enabled = 1;
    cred.x509_server_cert = g_ca;
    cred.x509_server_cert_len = strlen(g_ca);

    tunnel_handle = aiot_tunnel_init();
    if (tunnel_handle == NULL) {
        printf("aiot_tunnel_init failed\n");
        return -1;
    }

    if (strcmp(getenv("PEER_TLS"), "1") == 0) {
        aiot_tunnel_setopt(tunnel_handle, AIOT_TUNNELOPT_NETWORK_CRED, (void *)&cred);
    }
    aiot_tunnel_setopt(tunnel_handle, AIOT_TUNNELOPT_EVENT_HANDLER, (void *)tunnel_event_cb);
    for (i = 0; i < sizeof(services) / sizeof(aiot_tunnel_service_t); i++) {
        aiot_tunnel_setopt(tunnel_handle, AIOT_TUNNELOPT_ADD_SERVICE, (void *)&services[i]);
    }

    pthread_attr_init(&attr);
    if (0 != pthread_create(&g_tunnel_thread, &attr, aiot_tunnel_start, (void *)tunnel_handle)) {
        printf("create aiot_tunnel_start error!");
        return -1;
    }

    g_queue = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
    if (0 != pthread_create(&g_switch_thread, &attr, listen_task, (void *)tunnel_handle)) {
        printf("create listen_task error!");
        return -1;
    }

    business_process();

    msgctl(g_queue, IPC_RMID, NULL); /* this ends msgrcv */
    pthread_join(g_switch_thread, NULL);
    aiot_tunnel_stop(tunnel_handle);
    pthread_join(g_tunnel_thread, &result);
    if (result != NULL) {
        printf("thread result %d\n", *(int32_t *)result);
        return 1;
    }
    aiot_tunnel_deinit(&tunnel_handle);
    pthread_attr_destroy(&attr);
    return tunnel_handle == NULL ? 0 : 1;
}
