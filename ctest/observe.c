/*
 * What this library has beyond the Link SDK: limits, the state of tunnels and sessions, notices, the listen
 * thread. Bad arguments get the right code, and the log says which argument it was and why.
 */
#include "harness.h"

#include <errno.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char last_line[1024];
static int opened, closed, failed, tunnels, handler_calls;
static uint64_t bytes_from_cloud, bytes_to_cloud;
static char failure[512];

static int32_t keep_line(int32_t code, char *message)
{
    (void)code;
    pthread_mutex_lock(&lock);
    snprintf(last_line, sizeof(last_line), "%s", message);
    pthread_mutex_unlock(&lock);
    return 0;
}

static void on_notice(void *handle, const aiot_tunnel_notice_t *notice, void *userdata)
{
    CHECK(userdata == &lock);
    CHECK(notice->size == sizeof(*notice));
    CHECK(notice->tunnel_id[0] == 't');
    CHECK(handle != NULL);
    pthread_mutex_lock(&lock);
    switch (notice->type) {
    case AIOT_TUNNEL_NOTICE_FAILED:
        CHECK(notice->code < 0 && notice->text[0] != '\0');
        snprintf(failure, sizeof(failure), "%s", notice->text);
        failed++;
        break;
    case AIOT_TUNNEL_NOTICE_SESSION_OPENED:
        CHECK(notice->session_id[0] != '\0' && notice->service_type[0] == '_');
        opened++;
        break;
    case AIOT_TUNNEL_NOTICE_SESSION_CLOSED:
        closed++;
        bytes_from_cloud += notice->bytes_from_cloud;
        bytes_to_cloud += notice->bytes_to_cloud;
        break;
    }
    handler_calls++;
    pthread_mutex_unlock(&lock);
}

static int value_of(const int *number)
{
    int value;

    pthread_mutex_lock(&lock);
    value = *number;
    pthread_mutex_unlock(&lock);
    return value;
}

static void wait_for(const int *number, int least)
{
    int64_t deadline = now_ms() + TIMEOUT_MS;

    while (value_of(number) < least) {
        CHECK(now_ms() < deadline);
        usleep(1000);
    }
}

static void count_tunnel(const aiot_tunnel_status_t *tunnel, void *userdata)
{
    CHECK(userdata == &tunnels && tunnel->size == sizeof(*tunnel));
    tunnels++;
}

static void count_session(const aiot_tunnel_session_t *session, void *userdata)
{
    (void)session;
    ++*(int *)userdata;
}

/* The last log line names function, argument and reason. */
static void check_line(const char *function, const char *argument, const char *reason)
{
    int64_t deadline = now_ms() + TIMEOUT_MS;
    int good = 0;

    while (!good && now_ms() < deadline) {
        pthread_mutex_lock(&lock);
        good = strstr(last_line, function) != NULL && strstr(last_line, argument) != NULL &&
               strstr(last_line, reason) != NULL;
        CHECK(strstr(last_line, "hush") == NULL);
        pthread_mutex_unlock(&lock);
        usleep(1000);
    }
    if (!good) {
        fprintf(stderr, "the last line is %s", last_line);
    }
    CHECK(good);
}

static void refused_arguments_are_logged_with_their_reason(void)
{
    char id[] = "t", host[] = "127.0.0.1", port[] = "1", path[] = "/", token[] = "hush token";
    aiot_tunnel_connect_param_t params = {host, port, path, token};
    aiot_sysdep_network_cred_t cred;
    void *handle = aiot_tunnel_init(), *stale;

    CHECK_CODE(aiot_tunnel_set_logcb(keep_line), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_add(handle, id, &params), STATE_USER_INPUT_OUT_RANGE);
    check_line("aiot_tunnel_add", "params.token", "not visible ASCII");
    params.token = NULL;
    CHECK_CODE(aiot_tunnel_update(handle, id, &params), STATE_USER_INPUT_NULL_POINTER);
    check_line("aiot_tunnel_update", "params.token", "NULL");
    params.token = path;
    strcpy(port, "x");
    CHECK_CODE(aiot_tunnel_add(handle, id, &params), STATE_USER_INPUT_OUT_RANGE);
    check_line("aiot_tunnel_add", "params.port", "1 to 65535");
    id[0] = '\0';
    CHECK_CODE(aiot_tunnel_delete(handle, id), STATE_USER_INPUT_OUT_RANGE);
    check_line("aiot_tunnel_delete", "tunnel_id", "empty");
    CHECK_CODE(add_service(handle, "_SSH", "", 22), STATE_USER_INPUT_OUT_RANGE);
    check_line("aiot_tunnel_setopt", "service.ip", "empty");
    memset(&cred, 0, sizeof(cred));
    cred.option = AIOT_SYSDEP_NETWORK_CRED_SVRCERT_PSK;
    CHECK_CODE(aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_NETWORK_CRED, &cred),
               STATE_PORT_TLS_INVALID_CRED_OPTION);
    check_line("aiot_tunnel_setopt", "cred.option", "pre-shared");
    stale = handle;
    CHECK_CODE(aiot_tunnel_deinit(&handle), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_stop(stale), STATE_USER_INPUT_EXEC_DISABLED);
    check_line("aiot_tunnel_stop", "handle", "not valid");
    CHECK_CODE(aiot_tunnel_set_logcb(NULL), STATE_SUCCESS);
}

static void limits_are_checked_and_applied(void)
{
    char one[] = "t1", two[] = "t2", host[] = "127.0.0.1", port[] = "1", path[] = "/", token[] = "hush-t";
    aiot_tunnel_connect_param_t params = {host, port, path, token};
    void *handle = aiot_tunnel_init();
    int limit;

    for (limit = AIOT_TUNNEL_LIMIT_MAX_TUNNELS; limit <= AIOT_TUNNEL_LIMIT_PONG_TIMEOUT_MS; limit++) {
        CHECK_CODE(aiot_tunnel_set_limit(handle, (aiot_tunnel_limit_t)limit, 0),
                   STATE_USER_INPUT_OUT_RANGE);
        CHECK_CODE(aiot_tunnel_set_limit(handle, (aiot_tunnel_limit_t)limit, 100000), STATE_SUCCESS);
    }
    CHECK_CODE(aiot_tunnel_set_limit(handle, (aiot_tunnel_limit_t)limit, 1), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_set_limit(NULL, AIOT_TUNNEL_LIMIT_MAX_TUNNELS, 1),
               STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_set_limit(handle, AIOT_TUNNEL_LIMIT_MAX_TUNNELS, 1), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_add(handle, one, &params), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_add(handle, two, &params), STATE_TUNNEL_LIMIT);
    CHECK_CODE(aiot_tunnel_deinit(&handle), STATE_SUCCESS);
}

static void added_headers_are_checked_and_sent(void)
{
    char id[] = "header", host[] = "127.0.0.1", port[16], path[] = "/tunnel/header/dest?do=idle&header=x-route:a%20b";
    char token[128];
    aiot_tunnel_connect_param_t params = {host, port, path, token};
    device_t device;

    device_open(&device);
    snprintf(port, sizeof(port), "%u", peer_number("PEER_PORT"));
    snprintf(token, sizeof(token), "%s", getenv("PEER_TOKEN"));
    CHECK_CODE(aiot_tunnel_add_header(NULL, "X-A", "b"), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_add_header(device.handle, NULL, "b"), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_add_header(device.handle, "X-A", NULL), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_add_header(device.handle, "X A", "b"), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_add_header(device.handle, "Host", "b"), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_add_header(device.handle, "X-A", "b\r\nc: d"), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_add_header(device.handle, "X-Route", "a b"), STATE_SUCCESS);
    device_start(&device);
    CHECK_CODE(aiot_tunnel_add(device.handle, id, &params), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "header");
    device_close(&device);
}

static void the_state_of_tunnels_and_their_sessions_is_visible(void)
{
    char closed_port[] = "1", host[] = "127.0.0.1", path[] = "/", token[] = "hush-t", other[] = "t-refused";
    aiot_tunnel_connect_param_t params = {host, closed_port, path, token};
    aiot_tunnel_status_t status;
    device_t device;
    int sessions = 0;
    int64_t deadline;

    device_open(&device);
    CHECK_CODE(aiot_tunnel_set_notice_handler(NULL, on_notice, &lock), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_set_notice_handler(device.handle, on_notice, &lock), STATE_SUCCESS);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    memset(&status, 0, sizeof(status));
    CHECK_CODE(aiot_tunnel_get_status(device.handle, "t1", &status), STATE_USER_INPUT_OUT_RANGE);
    status.size = sizeof(status);
    CHECK_CODE(aiot_tunnel_get_status(device.handle, "t1", NULL), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_get_status(device.handle, NULL, &status), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_get_status(device.handle, "t2", &status), STATE_TUNNEL_UNKNOWN);
    CHECK_CODE(aiot_tunnel_get_status(device.handle, "t1", &status), STATE_SUCCESS);
    CHECK(status.state == AIOT_TUNNEL_STATE_CONNECTED && status.attempts == 0);
    CHECK(strcmp(status.tunnel_id, "t1") == 0 && strcmp(status.host, "127.0.0.1") == 0);
    CHECK(status.since_ms > 0 && status.retry_at_ms == 0 && status.port != 0);
    CHECK_CODE(aiot_tunnel_for_each_session(device.handle, "t1", count_session, &sessions),
               STATE_SUCCESS);
    CHECK(sessions == 0);

    CHECK_CODE(aiot_tunnel_add(device.handle, other, &params), STATE_SUCCESS);
    wait_for(&failed, 1);
    deadline = now_ms() + TIMEOUT_MS;
    do {
        CHECK_CODE(aiot_tunnel_get_status(device.handle, other, &status), STATE_SUCCESS);
        CHECK(now_ms() < deadline);
        usleep(1000);
    } while (status.state != AIOT_TUNNEL_STATE_WAITING);
    CHECK(status.last_error[0] != '\0' && strcmp(status.last_error, failure) == 0);
    CHECK(status.retry_at_ms >= status.since_ms && status.attempts >= 1);
    CHECK_CODE(aiot_tunnel_for_each(device.handle, count_tunnel, &tunnels), STATE_SUCCESS);
    CHECK(tunnels == 2);
    CHECK_CODE(aiot_tunnel_for_each(device.handle, NULL, NULL), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_delete(device.handle, other), STATE_SUCCESS);

    CHECK_CODE(update(&device, "t1", "echo"), STATE_SUCCESS);
    wait_for(&opened, 1);
    wait_for(&closed, 1);
    CHECK_EVENT(&device.events, 3, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
    CHECK_EVENT(&device.events, 4, AIOT_TUNNEL_EVT_EXPIRED, "t1");
    device_close(&device);
    CHECK(value_of(&closed) <= value_of(&opened));
    CHECK(bytes_from_cloud > 0 && bytes_to_cloud > 0);
}

/* The notice comes before the event. */
static void a_refused_token_is_noticed(void)
{
    device_t device;
    int before = value_of(&failed), index = 0;

    device_open(&device);
    CHECK_CODE(aiot_tunnel_set_notice_handler(device.handle, on_notice, &lock), STATE_SUCCESS);
    device_start(&device);
    CHECK_CODE(connect_tunnel(aiot_tunnel_add, device.handle, "t1", "idle", "hush-wrong"), STATE_SUCCESS);
    while (recorded(&device.events, index).type != AIOT_TUNNEL_EVT_EXPIRED) {
        index++;
    }
    CHECK(value_of(&failed) == before + 1);
    CHECK(strstr(failure, "token") != NULL);
    device_close(&device);
}

typedef struct {
    long type;
    struct {
        int32_t operation;
        char texts[5][128];
    } body;
} message_t;

static void send_add(int queue, const char *id)
{
    message_t message;

    memset(&message, 0, sizeof(message));
    message.type = 1;
    message.body.operation = 1;
    snprintf(message.body.texts[0], 128, "%s", id);
    snprintf(message.body.texts[1], 128, "127.0.0.1");
    snprintf(message.body.texts[2], 128, "%u", peer_number("PEER_PORT"));
    snprintf(message.body.texts[3], 128, "/tunnel/%s/dest?do=idle", id);
    snprintf(message.body.texts[4], 128, "%s", getenv("PEER_TOKEN"));
    CHECK(msgsnd(queue, &message, sizeof(message.body), 0) == 0);
}

static int queue_of(key_t key)
{
    int64_t deadline = now_ms() + TIMEOUT_MS;
    int queue;

    while ((queue = msgget(key, 0)) < 0) {
        CHECK(now_ms() < deadline);
        usleep(1000);
    }
    return queue;
}

static void the_listen_thread_survives_the_loss_of_its_queue(void)
{
    aiot_tunnel_listen_t options = {sizeof(options), 0, 0600, 0, 0};
    key_t key = (key_t)(0x6C000000 | (getpid() & 0xFFFFFF));
    device_t device;

    device_open(&device);
    CHECK_CODE(aiot_tunnel_listen(NULL, key), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_listen(device.handle, 0), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_listen_with(device.handle, NULL), STATE_USER_INPUT_NULL_POINTER);
    options.mode = 0777;
    CHECK_CODE(aiot_tunnel_listen_with(device.handle, &options), STATE_USER_INPUT_OUT_RANGE);
    options.key = key;
    options.mode = 0600;
    if (aiot_tunnel_listen_with(device.handle, &options) == STATE_TUNNEL_FAILED && msgget(key, 0) < 0 &&
        errno == ENOSYS) {
        printf("the_listen_thread is SKIPPED: no System V message queues\n");
        CHECK_CODE(aiot_tunnel_deinit(&device.handle), STATE_SUCCESS);
        return;
    }
    CHECK_CODE(aiot_tunnel_listen(device.handle, key), STATE_TUNNEL_RUNNING);
    device_start(&device);
    send_add(queue_of(key), "t1");
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    /* As at a logout. The tunnel lives on, and a new queue is read. */
    CHECK(msgctl(queue_of(key), IPC_RMID, NULL) == 0);
    send_add(queue_of(key), "t2");
    CHECK_EVENT(&device.events, 1, AIOT_TUNNEL_EVT_CONNECT, "t2");
    device_close(&device);
    CHECK(msgget(key, 0) < 0 && errno == ENOENT);
}

int main(void)
{
    RUN(refused_arguments_are_logged_with_their_reason);
    RUN(limits_are_checked_and_applied);
    RUN(added_headers_are_checked_and_sent);
    RUN(the_state_of_tunnels_and_their_sessions_is_visible);
    RUN(a_refused_token_is_noticed);
    RUN(the_listen_thread_survives_the_loss_of_its_queue);
    return 0;
}
