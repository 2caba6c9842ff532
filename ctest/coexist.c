/*
 * A program that also contains the Link SDK's core (here a stand-in with its symbols). The
 * program's own definitions take precedence, the library calls none of them, and its log lines
 * arrive through aiot_tunnel_set_logcb. Linked with the shared and with the static library.
 */
#include "harness.h"

static int calls_of_the_core, lines;
static aiot_sysdep_portfile_t *own_portfile;

/* The core ------------------------------------------------------------------------------- */

static uint64_t own_time(void)
{
    calls_of_the_core++;
    return 0;
}

aiot_sysdep_portfile_t g_aiot_sysdep_portfile = {.core_sysdep_time = own_time};

int32_t aiot_state_set_logcb(aiot_state_logcb_t handler)
{
    (void)handler;
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

int main(void)
{
    device_t device;

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
    CHECK(lines > 0);
    CHECK(calls_of_the_core == 3);
    return 0;
}
