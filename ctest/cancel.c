/*
 * Threads that are ended from outside (pthread_cancel) or end themselves (pthread_exit) inside the
 * library and its handlers. The process goes on, and the instance can still be released.
 */
#include "harness.h"

#include <semaphore.h>
#include <unistd.h>

/* What the event handler does with an event. */
typedef enum { RETURN, WAIT, EXIT, BE_CANCELLED } deed_t;

typedef struct {
    device_t device;
    deed_t on_connect, on_disconnect;
    /* The handler is inside; it may go on. */
    sem_t inside, go_on;
} scene_t;

/* The handler has no other way to find its scene: the recorder is its userdata. */
static scene_t scene;
static int exit_value;

static void act(void *handle, const aiot_tunnel_event_t *event)
{
    deed_t deed =
        event->type == AIOT_TUNNEL_EVT_CONNECT ? scene.on_connect : scene.on_disconnect;

    (void)handle;
    switch (deed) {
    case RETURN:
        break;
    case WAIT:
        sem_post(&scene.inside);
        /* A cancellation point. */
        CHECK(sem_wait(&scene.go_on) == 0);
        break;
    case EXIT:
        pthread_exit(&exit_value);
    case BE_CANCELLED:
        CHECK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL) == 0);
        CHECK(pthread_cancel(pthread_self()) == 0);
        pthread_testcancel();
        CHECK(!"the thread is cancelled");
    }
}

static void open_scene(deed_t on_connect, deed_t on_disconnect)
{
    scene.on_connect = on_connect;
    scene.on_disconnect = on_disconnect;
    CHECK(sem_init(&scene.inside, 0, 0) == 0 && sem_init(&scene.go_on, 0, 0) == 0);
    device_open(&scene.device);
    scene.device.events.then = act;
    device_start(&scene.device);
    CHECK_CODE(add(&scene.device, "t1", "idle"), STATE_SUCCESS);
}

static void delete_tunnel(void)
{
    CHECK_CODE(aiot_tunnel_delete(scene.device.handle, (char[]){"t1"}), STATE_SUCCESS);
}

static void expect(int index, aiot_tunnel_event_type type)
{
    CHECK_EVENT(&scene.device.events, index, type, "t1");
}

/* The instance is stopped. All its threads have ended with the start thread. */
static void check_over(int threads)
{
    CHECK_CODE(add(&scene.device, "t2", "idle"), STATE_USER_INPUT_EXEC_DISABLED);
    wait_for_at_most("task", threads);
    CHECK(aiot_tunnel_start(scene.device.handle) == NULL);
    CHECK_CODE(aiot_tunnel_deinit(&scene.device.handle), STATE_SUCCESS);
}

static void a_cancelled_start_thread_works_until_it_is_stopped(void)
{
    open_scene(RETURN, RETURN);
    expect(0, AIOT_TUNNEL_EVT_CONNECT);
    CHECK(pthread_cancel(scene.device.thread) == 0);
    CHECK_CODE(update(&scene.device, "t1", "idle&again"), STATE_SUCCESS);
    expect(1, AIOT_TUNNEL_EVT_DISCONNECT);
    expect(2, AIOT_TUNNEL_EVT_CONNECT);
    delete_tunnel();
    expect(3, AIOT_TUNNEL_EVT_DISCONNECT);
    device_close(&scene.device);
}

static void a_start_thread_cancelled_in_the_handler_works_until_it_is_stopped(void)
{
    open_scene(WAIT, WAIT);
    CHECK(sem_wait(&scene.inside) == 0);
    CHECK(pthread_cancel(scene.device.thread) == 0);
    sem_post(&scene.go_on);
    delete_tunnel();
    CHECK(sem_wait(&scene.inside) == 0);
    CHECK(pthread_cancel(scene.device.thread) == 0);
    sem_post(&scene.go_on);
    expect(1, AIOT_TUNNEL_EVT_DISCONNECT);
    device_close(&scene.device);
}

static void a_cancelled_start_thread_does_not_hold_deinit_up(void)
{
    open_scene(RETURN, RETURN);
    expect(0, AIOT_TUNNEL_EVT_CONNECT);
    CHECK(pthread_cancel(scene.device.thread) == 0);
    CHECK_CODE(aiot_tunnel_deinit(&scene.device.handle), STATE_SUCCESS);
    expect(1, AIOT_TUNNEL_EVT_DISCONNECT);
    CHECK(joined(scene.device.thread) == NULL);
}

static void a_handler_may_end_its_thread(deed_t deed, void *result)
{
    int threads = count_of("task");

    open_scene(deed, RETURN);
    CHECK(joined(scene.device.thread) == result);
    CHECK(recorded_count(&scene.device.events) == 1);
    check_over(threads);

    open_scene(RETURN, deed);
    expect(0, AIOT_TUNNEL_EVT_CONNECT);
    delete_tunnel();
    CHECK(joined(scene.device.thread) == result);
    CHECK(recorded_count(&scene.device.events) == 2);
    check_over(threads);

    /* The last event comes while the instance ends. */
    open_scene(RETURN, deed);
    expect(0, AIOT_TUNNEL_EVT_CONNECT);
    CHECK_CODE(aiot_tunnel_stop(scene.device.handle), STATE_SUCCESS);
    CHECK(joined(scene.device.thread) == result);
    check_over(threads);
}

static void a_handler_may_exit_its_thread(void)
{
    a_handler_may_end_its_thread(EXIT, &exit_value);
}

static void a_handler_may_be_cancelled(void)
{
    a_handler_may_end_its_thread(BE_CANCELLED, PTHREAD_CANCELED);
}

static void end_thread(void *handle, const aiot_tunnel_notice_t *notice, void *userdata)
{
    CHECK(handle == scene.device.handle && userdata == &scene);
    CHECK(notice->type == AIOT_TUNNEL_NOTICE_FAILED);
    pthread_exit(&exit_value);
}

static void a_handler_of_notices_may_exit_its_thread(void)
{
    char id[] = "t1", host[] = "127.0.0.1", closed_port[] = "1", path[] = "/", token[] = "hush-t";
    aiot_tunnel_connect_param_t params = {host, closed_port, path, token};
    int threads = count_of("task");

    device_open(&scene.device);
    CHECK_CODE(aiot_tunnel_set_notice_handler(scene.device.handle, end_thread, &scene), STATE_SUCCESS);
    device_start(&scene.device);
    CHECK_CODE(aiot_tunnel_add(scene.device.handle, id, &params), STATE_SUCCESS);
    CHECK(joined(scene.device.thread) == &exit_value);
    check_over(threads);
}

static void deinit_waits_for_a_thread_that_exits(void)
{
    open_scene(RETURN, EXIT);
    expect(0, AIOT_TUNNEL_EVT_CONNECT);
    /* This ends the tunnel, and so the thread. */
    CHECK_CODE(aiot_tunnel_deinit(&scene.device.handle), STATE_SUCCESS);
    CHECK(recorded_count(&scene.device.events) == 2);
    CHECK(joined(scene.device.thread) == &exit_value);
}

static void *check_after_main_has_exited(void *unused)
{
    (void)unused;
    expect(0, AIOT_TUNNEL_EVT_CONNECT);
    /* Not a join: the main thread can be joined only where the C library allows it. */
    CHECK_CODE(aiot_tunnel_deinit(&scene.device.handle), STATE_SUCCESS);
    CHECK(recorded_count(&scene.device.events) == 1);
    exit(0);
}

/* The last test: the main thread does not come back. */
static void the_main_thread_may_exit_in_a_handler(void)
{
    pthread_t thread;

    scene.on_connect = EXIT;
    device_open(&scene.device);
    scene.device.events.then = act;
    CHECK_CODE(add(&scene.device, "t1", "idle"), STATE_SUCCESS);
    CHECK(pthread_create(&thread, NULL, check_after_main_has_exited, NULL) == 0);
    alarm(TIMEOUT_MS / 1000);
    aiot_tunnel_start(scene.device.handle);
    CHECK(!"the thread has ended");
}

static sem_t calling;

static int32_t write_line(int32_t code, char *message)
{
    (void)code;
    /* A cancellation point, in every call that logs. */
    return (int32_t)write(STDOUT_FILENO, message, strlen(message));
}

/* Made by the thread that is not cancelled, which can free it. */
static aiot_sysdep_network_cred_t cred;

static void *call_for_ever(void *handle)
{
    char id[] = "t1";

    sem_post(&calling);
    for (;;) {
        connect_tunnel(aiot_tunnel_add, handle, "t1", "any", getenv("PEER_TOKEN"));
        aiot_tunnel_delete(handle, id);
        aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_NETWORK_CRED, &cred);
        pthread_testcancel();
    }
    return NULL;
}

static void a_thread_that_calls_may_be_cancelled(void)
{
    char *ca = NULL;
    int round;

    memset(&cred, 0, sizeof(cred));
    if (peer_has_tls()) {
        ca = peer_file("PEER_CA", &cred.x509_server_cert_len);
        cred.option = AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA;
        cred.sni_enabled = 1;
        cred.x509_server_cert = ca;
    }
    CHECK(sem_init(&calling, 0, 0) == 0);
    CHECK_CODE(aiot_state_set_logcb(write_line), STATE_SUCCESS);
    for (round = 0; round < (under_checker() ? 5 : 50); round++) {
        pthread_t thread;
        device_t device;
        int64_t deadline;

        device_open(&device);
        device_start(&device);
        CHECK(pthread_create(&thread, NULL, call_for_ever, device.handle) == 0);
        CHECK(sem_wait(&calling) == 0);
        CHECK(pthread_cancel(thread) == 0);
        CHECK(joined(thread) == PTHREAD_CANCELED);
        /* No lock is held for ever. The calls may have filled the queue of commands. */
        deadline = now_ms() + TIMEOUT_MS;
        while (add(&device, "t2", "any") != STATE_SUCCESS) {
            CHECK(now_ms() < deadline);
            usleep(1000);
        }
        device_close(&device);
    }
    CHECK_CODE(aiot_state_set_logcb(NULL), STATE_SUCCESS);
    free(ca);
}

int main(void)
{
    RUN(a_cancelled_start_thread_works_until_it_is_stopped);
    RUN(a_start_thread_cancelled_in_the_handler_works_until_it_is_stopped);
    RUN(a_cancelled_start_thread_does_not_hold_deinit_up);
    RUN(a_handler_may_exit_its_thread);
    RUN(a_handler_may_be_cancelled);
    RUN(a_handler_of_notices_may_exit_its_thread);
    RUN(deinit_waits_for_a_thread_that_exits);
    RUN(a_thread_that_calls_may_be_cancelled);
    RUN(the_main_thread_may_exit_in_a_handler);
    return 0;
}
