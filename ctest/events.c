/* Events: their kind, order and thread, and what an event handler may do. */
#include "harness.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

static void a_tunnel_lives_from_connect_to_disconnect(void)
{
    device_t device;

    device_open(&device);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    CHECK_CODE(update(&device, "t1", "idle&again"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 1, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
    CHECK_EVENT(&device.events, 2, AIOT_TUNNEL_EVT_CONNECT, "t1");
    CHECK_CODE(aiot_tunnel_delete(device.handle, (char[]){"t1"}), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 3, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
    CHECK_CODE(update(&device, "t2", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 4, AIOT_TUNNEL_EVT_CONNECT, "t2");
    device_close(&device);
    CHECK_EVENT(&device.events, 5, AIOT_TUNNEL_EVT_DISCONNECT, "t2");
    CHECK(recorded_count(&device.events) == 6);
}

static void all_events_come_from_the_start_thread(void)
{
    device_t device;
    char id[16];
    int i;

    device_open(&device);
    device_start(&device);
    for (i = 0; i < 20; i++) {
        snprintf(id, sizeof(id), "t%d", i);
        CHECK_CODE(add(&device, id, "idle"), STATE_SUCCESS);
    }
    CHECK_CODE(add(&device, "t20", "idle"), STATE_TUNNEL_LIMIT);
    recorded(&device.events, 19);
    CHECK_CODE(update(&device, "t7", "idle&again"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 20, AIOT_TUNNEL_EVT_DISCONNECT, "t7");
    CHECK_EVENT(&device.events, 21, AIOT_TUNNEL_EVT_CONNECT, "t7");
    device_close(&device);
    CHECK(recorded_count(&device.events) == 42);
    for (i = 0; i < 42; i++) {
        CHECK(pthread_equal(recorded(&device.events, i).thread, device.thread));
    }
}

static void a_lost_tunnel_comes_back(void)
{
    device_t device;

    device_open(&device);
    device_start(&device);
    CHECK_CODE(add(&device, "lost", "drop&times=2"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "lost");
    CHECK_EVENT(&device.events, 1, AIOT_TUNNEL_EVT_DISCONNECT, "lost");
    CHECK_EVENT(&device.events, 2, AIOT_TUNNEL_EVT_CONNECT, "lost");
    CHECK_EVENT(&device.events, 3, AIOT_TUNNEL_EVT_DISCONNECT, "lost");
    CHECK_EVENT(&device.events, 4, AIOT_TUNNEL_EVT_CONNECT, "lost");
    device_close(&device);
}

static void check_expires(const char *scenario, const char *token, int connects_first)
{
    device_t device;
    int next = 0;

    device_open(&device);
    device_start(&device);
    CHECK_CODE(connect_tunnel(aiot_tunnel_add, device.handle, "t1", scenario, token),
               STATE_SUCCESS);
    if (connects_first) {
        CHECK_EVENT(&device.events, next++, AIOT_TUNNEL_EVT_CONNECT, "t1");
        CHECK_EVENT(&device.events, next++, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
    }
    CHECK_EVENT(&device.events, next++, AIOT_TUNNEL_EVT_EXPIRED, "t1");
    /* The tunnel was dropped, so this creates it. */
    CHECK_CODE(update(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, next++, AIOT_TUNNEL_EVT_CONNECT, "t1");
    device_close(&device);
}

static void a_refused_token_expires_and_a_fresh_one_brings_the_tunnel_back(void)
{
    const char *token = getenv("PEER_TOKEN");

    check_expires("idle", "hush-another-token", 0);
    check_expires("status&code=401", token, 0);
    check_expires("close&code=4001", token, 1);
    check_expires("close&code=401", token, 1);
}

/* Handlers ------------------------------------------------------------------------------ */

static device_t *the_device;

static void delete_add_and_configure(void *handle, const aiot_tunnel_event_t *event)
{
    CHECK(handle == the_device->handle);
    if (event->type == AIOT_TUNNEL_EVT_CONNECT && strcmp(event->tunnel_id, "t1") == 0) {
        CHECK_CODE(add_service(handle, "_NEW", "127.0.0.1", 1), STATE_SUCCESS);
        set_peer_credential(handle);
        CHECK_CODE(aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_USERDATA, &the_device->events),
                   STATE_SUCCESS);
        set_handler(handle, record);
        CHECK_CODE(aiot_tunnel_delete(handle, (char *)event->tunnel_id), STATE_SUCCESS);
        CHECK_CODE(add(the_device, "t2", "idle"), STATE_SUCCESS);
        CHECK(*(int32_t *)aiot_tunnel_start(handle) == STATE_TUNNEL_RUNNING);
    }
}

static void a_handler_may_call_every_function(void)
{
    device_t device;

    the_device = &device;
    device_open(&device);
    device.events.then = delete_add_and_configure;
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    CHECK_EVENT(&device.events, 1, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
    CHECK_EVENT(&device.events, 2, AIOT_TUNNEL_EVT_CONNECT, "t2");
    device_close(&device);
}

static void stop_it(void *handle, const aiot_tunnel_event_t *event)
{
    (void)event;
    CHECK_CODE(aiot_tunnel_stop(handle), STATE_SUCCESS);
}

static void a_handler_may_stop(void)
{
    device_t device;

    device_open(&device);
    device.events.then = stop_it;
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK(joined(device.thread) == NULL);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    CHECK_EVENT(&device.events, 1, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
    CHECK_CODE(aiot_tunnel_deinit(&device.handle), STATE_SUCCESS);
}

static void deinit_it(void *handle, const aiot_tunnel_event_t *event)
{
    void *stale = handle;

    (void)event;
    CHECK_CODE(aiot_tunnel_deinit(&handle), STATE_SUCCESS);
    CHECK(handle == NULL);
    CHECK_CODE(aiot_tunnel_deinit(&stale), STATE_USER_INPUT_EXEC_DISABLED);
    CHECK_CODE(aiot_tunnel_stop(stale), STATE_USER_INPUT_EXEC_DISABLED);
}

static void a_handler_may_deinit_and_hears_nothing_more(void)
{
    device_t device;

    device_open(&device);
    device.events.then = deinit_it;
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK(joined(device.thread) == NULL);
    CHECK(recorded_count(&device.events) == 1);
    CHECK_CODE(aiot_tunnel_stop(device.handle), STATE_USER_INPUT_EXEC_DISABLED);
}

/* An echo service that counts the bytes it has sent back. */
typedef struct {
    int listener;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    long echoed;
} echo_t;

static echo_t the_echo = {-1, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};

static void *echo_one_connection(void *arg)
{
    echo_t *echo = arg;
    int connection = accept(echo->listener, NULL, NULL);
    char buffer[65536];
    ssize_t got, sent;

    CHECK(connection >= 0);
    while ((got = read(connection, buffer, sizeof(buffer))) > 0) {
        for (sent = 0; sent < got;) {
            ssize_t now = write(connection, buffer + sent, (size_t)(got - sent));

            CHECK(now > 0);
            sent += now;
        }
        pthread_mutex_lock(&echo->lock);
        echo->echoed += got;
        pthread_cond_signal(&echo->changed);
        pthread_mutex_unlock(&echo->lock);
    }
    close(connection);
    return NULL;
}

static unsigned int echo_listen(echo_t *echo)
{
    struct sockaddr_in address;
    socklen_t size = sizeof(address);

    memset(&address, 0, sizeof(address));
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    echo->listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(echo->listener >= 0);
    CHECK(bind(echo->listener, (struct sockaddr *)&address, size) == 0);
    CHECK(listen(echo->listener, 1) == 0);
    CHECK(getsockname(echo->listener, (struct sockaddr *)&address, &size) == 0);
    return ntohs(address.sin_port);
}

#define TRANSFER 300000

static void wait_for_the_whole_transfer(void *handle, const aiot_tunnel_event_t *event)
{
    struct timespec deadline;

    (void)handle;
    if (event->type != AIOT_TUNNEL_EVT_CONNECT) {
        return;
    }
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += TIMEOUT_MS / 1000;
    pthread_mutex_lock(&the_echo.lock);
    while (the_echo.echoed < TRANSFER) {
        CHECK(pthread_cond_timedwait(&the_echo.changed, &the_echo.lock, &deadline) == 0);
    }
    pthread_mutex_unlock(&the_echo.lock);
}

static void data_flows_while_a_handler_takes_its_time(void)
{
    pthread_t echo_thread;
    device_t device;

    device_open(&device);
    /* Replaces the service that device_open has set. */
    CHECK_CODE(add_service(device.handle, "_ECHO", "127.0.0.1", echo_listen(&the_echo)), 0);
    CHECK(pthread_create(&echo_thread, NULL, echo_one_connection, &the_echo) == 0);
    device.events.then = wait_for_the_whole_transfer;
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "echo&bytes=300000"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    CHECK_EVENT(&device.events, 1, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
    CHECK_EVENT(&device.events, 2, AIOT_TUNNEL_EVT_EXPIRED, "t1");
    device_close(&device);
    joined(echo_thread);
    close(the_echo.listener);
}

static void sleep_two_seconds(void *handle, const aiot_tunnel_event_t *event)
{
    (void)handle;
    if (event->type == AIOT_TUNNEL_EVT_CONNECT) {
        sleep(2);
    }
}

static void commands_and_deinit_wait_for_a_handler_that_sleeps(void)
{
    device_t device;
    int64_t began;

    device_open(&device);
    device.events.then = sleep_two_seconds;
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    began = now_ms();
    CHECK_CODE(update(&device, "t1", "any"), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_delete(device.handle, (char[]){"t1"}), STATE_SUCCESS);
    CHECK(now_ms() - began < 1000);
    CHECK_CODE(aiot_tunnel_deinit(&device.handle), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 1, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
    CHECK(recorded_count(&device.events) == 2);
    CHECK(joined(device.thread) == NULL);
}

int main(void)
{
    RUN(a_tunnel_lives_from_connect_to_disconnect);
    RUN(all_events_come_from_the_start_thread);
    RUN(a_lost_tunnel_comes_back);
    RUN(a_refused_token_expires_and_a_fresh_one_brings_the_tunnel_back);
    RUN(a_handler_may_call_every_function);
    RUN(a_handler_may_stop);
    RUN(a_handler_may_deinit_and_hears_nothing_more);
    RUN(data_flows_while_a_handler_takes_its_time);
    RUN(commands_and_deinit_wait_for_a_handler_that_sleeps);
    return 0;
}
