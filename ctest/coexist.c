/*
 * A program that also contains the Link SDK's core (here a stand-in with its symbols). The
 * program's own definitions take precedence, the library calls none of them, and its log lines
 * arrive at the core's callback, or at that of aiot_tunnel_set_logcb if there is one. Linked with the shared and with the static library.
 */
#include "harness.h"

#include <unistd.h>

static int calls_of_the_core, lines, lines_at_the_core;
static aiot_sysdep_portfile_t *own_portfile;

/* The core ------------------------------------------------------------------------------- */

static uint64_t own_time(void)
{
    calls_of_the_core++;
    return 0;
}

aiot_sysdep_portfile_t g_aiot_sysdep_portfile = {.core_sysdep_time = own_time};

aiot_state_logcb_t g_logcb_handler;

int32_t aiot_state_set_logcb(aiot_state_logcb_t handler)
{
    g_logcb_handler = handler;
    calls_of_the_core++;
    return 77;
}

void aiot_sysdep_set_portfile(aiot_sysdep_portfile_t *portfile)
{
    calls_of_the_core++;
    own_portfile = portfile;
}

aiot_sysdep_portfile_t *aiot_sysdep_get_portfile(void)
{
    calls_of_the_core++;
    return own_portfile;
}

/* ----------------------------------------------------------------------------------------- */

static int32_t count_line(int32_t code, char *message)
{
    (void)code;
    (void)message;
    __sync_fetch_and_add(&lines, 1);
    return 0;
}

static int32_t count_line_at_the_core(int32_t code, char *message)
{
    (void)code;
    (void)message;
    __sync_fetch_and_add(&lines_at_the_core, 1);
    return 0;
}

/* A refused call, which logs one line. */
static void log_a_line(void)
{
    CHECK_CODE(aiot_tunnel_stop((void *)&lines), STATE_USER_INPUT_EXEC_DISABLED);
}

static int value_of(int *number)
{
    return __sync_fetch_and_add(number, 0);
}

/* Waits until the number of lines is this one. */
static void wait_for_lines(int *number, int count)
{
    int64_t deadline = now_ms() + TIMEOUT_MS;

    while (value_of(number) != count) {
        CHECK(now_ms() < deadline);
        usleep(1000);
    }
}

static void lines_reach_the_cores_callback_until_there_is_another_one(void)
{
    void *handle;

    /* The harness may have set one, to keep the lines. */
    CHECK_CODE(aiot_tunnel_set_logcb(NULL), STATE_SUCCESS);
    CHECK_CODE(aiot_state_set_logcb(count_line_at_the_core), 77);
    handle = aiot_tunnel_init();
    log_a_line();
    wait_for_lines(&lines_at_the_core, 1);
    CHECK_CODE(aiot_tunnel_set_logcb(count_line), STATE_SUCCESS);
    log_a_line();
    wait_for_lines(&lines, 1);
    CHECK_CODE(aiot_tunnel_set_logcb(NULL), STATE_SUCCESS);
    log_a_line();
    wait_for_lines(&lines_at_the_core, 2);
    CHECK(value_of(&lines) == 1);
    CHECK_CODE(aiot_state_set_logcb(NULL), 77);
    log_a_line();
    CHECK_CODE(aiot_tunnel_deinit(&handle), STATE_SUCCESS);
    calls_of_the_core = lines = 0;
}

int main(void)
{
    device_t device;

    lines_reach_the_cores_callback_until_there_is_another_one();

    CHECK(g_aiot_sysdep_portfile.core_sysdep_time == own_time);
    CHECK_CODE(aiot_state_set_logcb(count_line), 77);
    aiot_sysdep_set_portfile(&g_aiot_sysdep_portfile);
    CHECK(aiot_sysdep_get_portfile() == &g_aiot_sysdep_portfile);
    CHECK(calls_of_the_core == 3);

    CHECK_CODE(aiot_tunnel_set_logcb(count_line), STATE_SUCCESS);
    device_open(&device);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "echo"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    CHECK_EVENT(&device.events, 1, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
    CHECK_EVENT(&device.events, 2, AIOT_TUNNEL_EVT_EXPIRED, "t1");
    device_close(&device);
    CHECK(lines > 0 && lines_at_the_core == 2);
    CHECK(calls_of_the_core == 3);
    return 0;
}
