/* init, start, stop and deinit in every order, valid or not, and from many threads at once. */
#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#define THREADS 10

static int32_t code_of(void *start_result)
{
    return start_result == NULL ? STATE_SUCCESS : *(int32_t *)start_result;
}

static void stop_before_start_makes_start_return(void)
{
    void *handle = aiot_tunnel_init();

    CHECK_CODE(aiot_tunnel_stop(handle), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_stop(handle), STATE_SUCCESS);
    CHECK(aiot_tunnel_start(handle) == NULL);
    CHECK(aiot_tunnel_start(handle) == NULL);
    CHECK_CODE(aiot_tunnel_deinit(&handle), STATE_SUCCESS);
}

static void commands_after_a_stop_are_refused(void)
{
    device_t device;

    device_open(&device);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    CHECK_CODE(aiot_tunnel_stop(device.handle), STATE_SUCCESS);
    CHECK_CODE(add(&device, "t2", "idle"), STATE_USER_INPUT_EXEC_DISABLED);
    CHECK_CODE(update(&device, "t1", "idle"), STATE_USER_INPUT_EXEC_DISABLED);
    CHECK_CODE(aiot_tunnel_delete(device.handle, (char[]){"t1"}), STATE_USER_INPUT_EXEC_DISABLED);
    CHECK(joined(device.thread) == NULL);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_USER_INPUT_EXEC_DISABLED);
    CHECK_CODE(aiot_tunnel_stop(device.handle), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_deinit(&device.handle), STATE_SUCCESS);
    CHECK(recorded_count(&device.events) == 2);
}

static void deinit_without_start_drops_what_waits(void)
{
    device_t device;

    device_open(&device);
    CHECK_CODE(add(&device, "never", "idle"), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_deinit(&device.handle), STATE_SUCCESS);
    CHECK(recorded_count(&device.events) == 0);
}

static void a_second_start_returns_a_code_at_once(void)
{
    device_t device;

    device_open(&device);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    CHECK_CODE(code_of(aiot_tunnel_start(device.handle)), STATE_TUNNEL_RUNNING);
    device_close(&device);
    CHECK_EVENT(&device.events, 1, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
}

static void commands_before_start_run_in_their_order(void)
{
    device_t device;

    device_open(&device);
    CHECK_CODE(add(&device, "t1", "hang"), STATE_SUCCESS);
    CHECK_CODE(update(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_CODE(add(&device, "gone", "any"), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_delete(device.handle, (char[]){"gone"}), STATE_SUCCESS);
    device_start(&device);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    device_close(&device);
    CHECK_EVENT(&device.events, 1, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
    CHECK(recorded_count(&device.events) == 2);
}

static void deinit_stops_and_waits_for_the_start_thread(void)
{
    device_t device;
    int count;

    device_open(&device);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    CHECK_CODE(aiot_tunnel_deinit(&device.handle), STATE_SUCCESS);
    CHECK(device.handle == NULL);
    count = recorded_count(&device.events);
    CHECK(count == 2);
    CHECK_EVENT(&device.events, 1, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
    CHECK(joined(device.thread) == NULL);
    CHECK(recorded_count(&device.events) == count);
}

static void stop_ends_start_while_a_tunnel_connects(void)
{
    device_t device;
    int64_t began;
    int i;

    for (i = 0; i < 5; i++) {
        device_open(&device);
        device_start(&device);
        CHECK_CODE(add(&device, "t1", "hang"), STATE_SUCCESS);
        usleep(20000 * i); /* stops at different stages of the connect */
        began = now_ms();
        CHECK_CODE(aiot_tunnel_stop(device.handle), STATE_SUCCESS);
        CHECK(joined(device.thread) == NULL);
        CHECK(now_ms() - began <= promised_ms(200));
        CHECK_CODE(aiot_tunnel_deinit(&device.handle), STATE_SUCCESS);
    }
}

static void *deinit_it(void *handle)
{
    int32_t code = aiot_tunnel_deinit((void **)handle);

    CHECK(code == STATE_SUCCESS || code == STATE_USER_INPUT_NULL_POINTER ||
          code == STATE_USER_INPUT_EXEC_DISABLED);
    return (void *)(intptr_t)(code == STATE_SUCCESS);
}

static void of_racing_deinits_one_wins(void)
{
    int round, i;

    for (round = 0; round < 50; round++) {
        pthread_t threads[THREADS];
        device_t device;
        void *copies[THREADS];
        int won = 0;

        device_open(&device);
        if (round % 2 == 0) {
            device_start(&device);
        }
        for (i = 0; i < THREADS; i++) {
            copies[i] = device.handle;
            CHECK(pthread_create(&threads[i], NULL, deinit_it, &copies[i]) == 0);
        }
        for (i = 0; i < THREADS; i++) {
            won += joined(threads[i]) != NULL;
        }
        CHECK(won == 1);
        if (round % 2 == 0) {
            /* The thread ends, whichever deinit won. */
            joined(device.thread);
        }
    }
}

typedef struct {
    device_t *device;
    int number;
} caller_t;

static void *call_everything(void *arg)
{
    caller_t *caller = arg;
    char id[16];
    int round;

    snprintf(id, sizeof(id), "t%d", caller->number);
    for (round = 0; round < (under_checker() ? 3 : 20); round++) {
        CHECK_CODE(add(caller->device, id, "any"), STATE_SUCCESS);
        CHECK_CODE(update(caller->device, id, "any"), STATE_SUCCESS);
        CHECK_CODE(add_service(caller->device->handle, id, "127.0.0.1", 1), STATE_SUCCESS);
        set_handler(caller->device->handle, record);
        set_peer_credential(caller->device->handle);
        CHECK_CODE(code_of(aiot_tunnel_start(caller->device->handle)), STATE_TUNNEL_RUNNING);
        CHECK_CODE(aiot_tunnel_delete(caller->device->handle, id), STATE_SUCCESS);
    }
    return NULL;
}

static void ten_threads_may_call_at_once(void)
{
    pthread_t threads[THREADS];
    caller_t callers[THREADS];
    device_t device;
    int i, connects = 0, disconnects = 0;

    device_open(&device);
    device_start(&device);
    /* Once this tunnel is connected, start is certainly running. */
    CHECK_CODE(add(&device, "first", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "first");
    for (i = 0; i < THREADS; i++) {
        callers[i] = (caller_t){&device, i};
        CHECK(pthread_create(&threads[i], NULL, call_everything, &callers[i]) == 0);
    }
    for (i = 0; i < THREADS; i++) {
        joined(threads[i]);
    }
    device_close(&device);
    for (i = 0; i < recorded_count(&device.events); i++) {
        connects += recorded(&device.events, i).type == AIOT_TUNNEL_EVT_CONNECT;
        disconnects += recorded(&device.events, i).type == AIOT_TUNNEL_EVT_DISCONNECT;
    }
    CHECK(connects == disconnects);
}

static long resident_pages(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    long size, resident;

    CHECK(file != NULL);
    CHECK(fscanf(file, "%ld %ld", &size, &resident) == 2);
    fclose(file);
    return resident;
}

static void cycles(int count)
{
    int i;

    for (i = 0; i < count; i++) {
        device_t device;

        device_open(&device);
        CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
        if (i % 10 == 0) {
            device_start(&device);
            recorded(&device.events, 0);
        }
        CHECK_CODE(aiot_tunnel_deinit(&device.handle), STATE_SUCCESS);
        if (i % 10 == 0) {
            CHECK(joined(device.thread) == NULL);
        }
    }
}

static void a_thousand_cycles_leave_nothing_behind(void)
{
    enum { MOST_PAGES = 128 }; /* 512 KiB: a leak of half a KiB in each cycle is found */
    int descriptors, threads;
    long pages;

    cycles(50);
    descriptors = count_of("fd");
    threads = count_of("task");
    pages = resident_pages();
    /* Fewer cycles under a checker: it is slow, and finds leaks by itself. */
    cycles(under_checker() ? 100 : 1000);
    wait_for_at_most("fd", descriptors);
    wait_for_at_most("task", threads);
    CHECK(under_checker() || resident_pages() - pages <= MOST_PAGES);
}

/* What the program writes to a standard stream that it has closed must not get into a connection. */
static void the_numbers_of_closed_standard_streams_stay_free(void)
{
    device_t device;
    int null;

    device_open(&device);
    CHECK(close(STDIN_FILENO) == 0);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    CHECK(fcntl(STDIN_FILENO, F_GETFD) == -1 && errno == EBADF);
    device_close(&device);
    null = open("/dev/null", O_RDONLY);
    CHECK(null == STDIN_FILENO);
}

/* 1 for a thread of the library; then also the signals that it blocks. */
static int is_of_the_library(const char *thread, unsigned long long *blocked)
{
    char path[300], line[256], name[64] = "";
    FILE *status;

    snprintf(path, sizeof(path), "/proc/self/task/%s/status", thread);
    status = fopen(path, "r");
    if (status == NULL) {
        return 0;
    }
    while (fgets(line, sizeof(line), status) != NULL) {
        sscanf(line, "Name: %63s", name);
        sscanf(line, "SigBlk: %llx", blocked);
    }
    fclose(status);
    return strncmp(name, "aiot-", strlen("aiot-")) == 0;
}

static int32_t ignore_line(int32_t code, char *message)
{
    (void)message;
    return code;
}

static void the_threads_of_the_library_take_no_signals(void)
{
    const int taken[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
    const int blocked[] = {SIGTERM, SIGINT, SIGHUP, SIGALRM, SIGUSR1, SIGCHLD, SIGPIPE};
    int threads = 0;
    struct dirent *entry;
    device_t device;
    size_t i;
    DIR *tasks;

    CHECK_CODE(aiot_state_set_logcb(ignore_line), STATE_SUCCESS);
    device_open(&device);
    CHECK_CODE(aiot_tunnel_listen(device.handle, 0x51600000 | (getpid() & 0xFFFFF)), STATE_SUCCESS);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    while ((entry = readdir(tasks)) != NULL) {
        unsigned long long mask = 0;

        if (!is_of_the_library(entry->d_name, &mask)) {
            continue;
        }
        threads++;
        for (i = 0; i < sizeof(blocked) / sizeof(blocked[0]); i++) {
            CHECK(mask & 1ULL << (blocked[i] - 1));
        }
        for (i = 0; i < sizeof(taken) / sizeof(taken[0]); i++) {
            CHECK(!(mask & 1ULL << (taken[i] - 1)));
        }
    }
    closedir(tasks);
    /* The listen thread, the worker and the log thread. */
    CHECK(threads >= 3);
    device_close(&device);
    CHECK_CODE(aiot_state_set_logcb(NULL), STATE_SUCCESS);
}

static void release(void *handle, const aiot_tunnel_event_t *event)
{
    void *copy = handle;

    (void)event;
    CHECK_CODE(aiot_tunnel_deinit(&copy), STATE_SUCCESS);
}

static void a_handler_may_release_an_instance_that_listens(void)
{
    int key = 0x51600000 | (getpid() & 0xFFFFF);
    void *next = aiot_tunnel_init();
    device_t device;

    device_open(&device);
    device.events.then = release;
    CHECK_CODE(aiot_tunnel_listen(device.handle, key), STATE_SUCCESS);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK(joined(device.thread) == NULL);
    /* The queue has no reader any more. */
    CHECK_CODE(aiot_tunnel_listen(next, key), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_deinit(&next), STATE_SUCCESS);
}

static device_t pair[2];
static pthread_barrier_t both_inside;

static void release_the_other(void *handle, const aiot_tunnel_event_t *event)
{
    void *other = strcmp(event->tunnel_id, "t0") == 0 ? pair[1].handle : pair[0].handle;

    CHECK(handle != other);
    if (event->type != AIOT_TUNNEL_EVT_CONNECT) {
        return;
    }
    pthread_barrier_wait(&both_inside);
    CHECK_CODE(aiot_tunnel_deinit(&other), STATE_SUCCESS);
}

static void two_handlers_may_release_each_others_instance(void)
{
    int i;

    CHECK(pthread_barrier_init(&both_inside, NULL, 2) == 0);
    for (i = 0; i < 2; i++) {
        device_open(&pair[i]);
        pair[i].events.then = release_the_other;
    }
    for (i = 0; i < 2; i++) {
        device_start(&pair[i]);
        CHECK_CODE(add(&pair[i], i == 0 ? "t0" : "t1", "idle"), STATE_SUCCESS);
    }
    for (i = 0; i < 2; i++) {
        CHECK(joined(pair[i].thread) == NULL);
        CHECK_CODE(aiot_tunnel_deinit(&pair[i].handle), STATE_USER_INPUT_EXEC_DISABLED);
    }
    CHECK(pthread_barrier_destroy(&both_inside) == 0);
}

int main(void)
{
    RUN(stop_before_start_makes_start_return);
    RUN(commands_after_a_stop_are_refused);
    RUN(deinit_without_start_drops_what_waits);
    RUN(a_second_start_returns_a_code_at_once);
    RUN(commands_before_start_run_in_their_order);
    RUN(deinit_stops_and_waits_for_the_start_thread);
    RUN(stop_ends_start_while_a_tunnel_connects);
    RUN(of_racing_deinits_one_wins);
    RUN(ten_threads_may_call_at_once);
    RUN(a_thousand_cycles_leave_nothing_behind);
    RUN(the_threads_of_the_library_take_no_signals);
    RUN(the_numbers_of_closed_standard_streams_stay_free);
    RUN(a_handler_may_release_an_instance_that_listens);
    RUN(two_handlers_may_release_each_others_instance);
    return 0;
}
