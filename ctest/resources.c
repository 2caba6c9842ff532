/*
 * The system runs out of a resource: the library logs it, tries again, and recovers as soon as the
 * resource is available. Nothing leaks and there is no busy loop. Run with inject.c preloaded.
 */
#include "harness.h"

#include <dlfcn.h>
#include <errno.h>
#include <unistd.h>

/* Far more calls than a case needs, far fewer than a busy loop makes. */
#define MOST_CALLS 300

static void (*inject_arm)(const char *function, int error, int skip, int times);
static void (*inject_counts)(int *all, int *failed);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *wanted;
static int seen, all_lines;

static int32_t log_line(int32_t code, char *message)
{
    (void)code;
    pthread_mutex_lock(&lock);
    all_lines++;
    seen += strstr(message, wanted) != NULL;
    pthread_mutex_unlock(&lock);
    printf("  %s", message);
    return 0;
}

/* The part of a log line that names the error. */
static const char *text_of(int error)
{
    static char text[64];

    snprintf(text, sizeof(text), "(os error %d)", error);
    return text;
}

static void wait_for_no_more_than(int fds, int threads)
{
    int64_t deadline = now_ms() + TIMEOUT_MS;

    while (count_of("fd") > fds || count_of("task") > threads) {
        CHECK(now_ms() < deadline);
        usleep(10000);
    }
}

/*
 * Makes some calls fail while a tunnel connects and carries data. The scenario ends with close code
 * 4001, so EXPIRED shows that everything succeeded in the end. The peer counts connections by their
 * path, so each `lossy` case has a path of its own.
 */
static void check(const char *function, int error, int skip, int times, const char *scenario)
{
    int idle_fds, idle_threads, fds, threads, calls, failed, index = 0;
    device_t device;

    idle_fds = count_of("fd");
    idle_threads = count_of("task");
    printf("%s: errno %d, %d times after %d calls\n", function, error, times, skip);
    device_open(&device);
    device_start(&device);
    /* An executed command shows that the start thread is running. */
    CHECK_CODE(add(&device, "warm", "unknown"), STATE_SUCCESS);
    while (recorded(&device.events, index).type != AIOT_TUNNEL_EVT_EXPIRED) {
        index++;
    }
    index++;
    /* The start thread, and the thread that calls the log callback. */
    wait_for_no_more_than(idle_fds, idle_threads + 2);
    fds = count_of("fd");
    threads = count_of("task");

    pthread_mutex_lock(&lock);
    wanted = text_of(error);
    seen = all_lines = 0;
    pthread_mutex_unlock(&lock);
    inject_arm(function, error, skip, times);
    CHECK_CODE(add(&device, "t1", scenario), STATE_SUCCESS);
    while (recorded(&device.events, index).type != AIOT_TUNNEL_EVT_EXPIRED) {
        index++;
    }
    inject_counts(&calls, &failed);
    inject_arm("", 0, 0, 0);
    printf("%s: %d calls, %d failed, %d lines say so, of %d\n", function, calls, failed, seen,
           all_lines);
    CHECK(failed == times);
    CHECK(calls <= MOST_CALLS);
    pthread_mutex_lock(&lock);
    CHECK(seen >= 1);
    CHECK(all_lines <= 30 + 20 * times);
    pthread_mutex_unlock(&lock);
    wait_for_no_more_than(fds, threads);
    device_close(&device);
}

static void no_thread_for_a_worker(void)
{
    check("pthread_create", EAGAIN, 0, 2, "unknown");
}

static void no_descriptor_for_a_waker(void)
{
    check("eventfd", EMFILE, 0, 2, "unknown");
    check("eventfd", ENFILE, 0, 1, "unknown");
}

static void no_socket(void)
{
    check("socket", EMFILE, 0, 2, "unknown");
    check("socket", ENFILE, 0, 1, "unknown");
    check("socket", ENOBUFS, 0, 1, "unknown");
}

static void no_port_is_left(void)
{
    check("connect", EADDRNOTAVAIL, 0, 2, "unknown");
}

static void no_buffer_for_the_cloud(void)
{
    check("send", ENOBUFS, 0, 2, "unknown");
    /* The connection is open at that call. */
    check("send", ENOBUFS, peer_has_tls() ? 3 : 1, 1, "lossy&case=1");
    check("recv", ENOMEM, 0, 2, "lossy&times=2&case=2");
}

static void no_memory_for_poll(void)
{
    check("poll", ENOMEM, 0, 3, "lossy&times=3&case=3");
    check("poll", ENOMEM, 2, 1, "lossy&case=4");
}

static void no_option_for_a_socket(void)
{
    /* The first two set how a close ends the connection. It works without them. */
    check("setsockopt", ENOBUFS, 2, 1, "unknown");
}

/* The session is released with code 1, and the tunnel continues. */
static void no_buffer_for_a_local_service(void)
{
    check("sendmsg", ENOBUFS, 0, 1, "reset&times=2");
}

/* The start thread calls the log callback itself. */
static void no_thread_for_the_log(void)
{
    device_t device;

    device_open(&device);
    CHECK_CODE(aiot_tunnel_stop(device.handle), STATE_SUCCESS);
    pthread_mutex_lock(&lock);
    wanted = "remote proxy thread exit!";
    seen = all_lines = 0;
    pthread_mutex_unlock(&lock);
    inject_arm("pthread_create", EAGAIN, 0, 1000);
    CHECK(aiot_tunnel_start(device.handle) == NULL);
    inject_arm("", 0, 0, 0);
    pthread_mutex_lock(&lock);
    CHECK(seen == 1 && all_lines >= 2);
    pthread_mutex_unlock(&lock);
    CHECK_CODE(aiot_tunnel_deinit(&device.handle), STATE_SUCCESS);
}

int main(void)
{
    *(void **)&inject_arm = dlsym(RTLD_DEFAULT, "inject_arm");
    *(void **)&inject_counts = dlsym(RTLD_DEFAULT, "inject_counts");
    if (inject_arm == NULL || inject_counts == NULL) {
        fprintf(stderr, "run this program with inject.c preloaded\n");
        return 1;
    }
    wanted = "";
    CHECK_CODE(aiot_tunnel_set_logcb(log_line), STATE_SUCCESS);
    RUN(no_thread_for_a_worker);
    RUN(no_thread_for_the_log);
    RUN(no_descriptor_for_a_waker);
    RUN(no_socket);
    RUN(no_port_is_left);
    RUN(no_buffer_for_the_cloud);
    RUN(no_memory_for_poll);
    RUN(no_option_for_a_socket);
    RUN(no_buffer_for_a_local_service);
    return 0;
}
