/* Data through a tunnel, and peers that disappear while SIGPIPE has its default action. */
#include "harness.h"

#include <signal.h>

/* The peer closes with 4001 if the scenario succeeded. */
static void check_scenario(device_t *device, const char *id, const char *scenario)
{
    int first = recorded_count(&device->events);

    CHECK_CODE(add(device, id, scenario), STATE_SUCCESS);
    CHECK_EVENT(&device->events, first, AIOT_TUNNEL_EVT_CONNECT, id);
    CHECK_EVENT(&device->events, first + 1, AIOT_TUNNEL_EVT_DISCONNECT, id);
    CHECK_EVENT(&device->events, first + 2, AIOT_TUNNEL_EVT_EXPIRED, id);
}

static void a_session_carries_bytes_both_ways(void)
{
    device_t device;

    device_open(&device);
    device_start(&device);
    check_scenario(&device, "one", "echo&bytes=1");
    check_scenario(&device, "more", "echo&bytes=1000000");
    device_close(&device);
}

static void ten_sessions_at_once_keep_their_bytes_apart(void)
{
    device_t device;

    device_open(&device);
    device_start(&device);
    check_scenario(&device, "ten", under_checker() ? "echo&sessions=10&bytes=50000"
                                                : "echo&sessions=10&bytes=1000000");
    device_close(&device);
}

static void a_service_that_nobody_offers_is_refused(void)
{
    device_t device;

    device_open(&device);
    device_start(&device);
    check_scenario(&device, "t1", "unknown");
    device_close(&device);
}

static void a_local_service_that_resets_kills_nobody(void)
{
    device_t device;

    device_open(&device);
    device_start(&device);
    check_scenario(&device, "t1", "reset&times=20");
    device_close(&device);
}

static void a_cloud_that_resets_amid_data_kills_nobody(void)
{
    device_t device;
    int i;

    device_open(&device);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "vanish&times=5"), STATE_SUCCESS);
    for (i = 0; i < 5; i++) {
        CHECK_EVENT(&device.events, 2 * i, AIOT_TUNNEL_EVT_CONNECT, "t1");
        CHECK_EVENT(&device.events, 2 * i + 1, AIOT_TUNNEL_EVT_DISCONNECT, "t1");
    }
    CHECK_EVENT(&device.events, 10, AIOT_TUNNEL_EVT_CONNECT, "t1");
    device_close(&device);
}

static void the_client_certificate_is_presented(void)
{
    aiot_sysdep_network_cred_t cred;
    char *ca, *cert, *key;
    device_t device;

    if (!peer_has_tls()) {
        return;
    }
    device_open(&device);
    memset(&cred, 0, sizeof(cred));
    cred.option = AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA;
    cred.x509_server_cert = ca = peer_file("PEER_CA", &cred.x509_server_cert_len);
    cred.x509_client_cert = cert = peer_file("PEER_CLIENT_CERT", &cred.x509_client_cert_len);
    cred.x509_client_privkey = key = peer_file("PEER_CLIENT_KEY", &cred.x509_client_privkey_len);
    CHECK_CODE(aiot_tunnel_setopt(device.handle, AIOT_TUNNELOPT_NETWORK_CRED, &cred), 0);
    free(ca);
    free(cert);
    free(key);
    device_start(&device);
    check_scenario(&device, "t1", "client");
    device_close(&device);
}

int main(void)
{
    /* A shell may have passed on another disposition. */
    signal(SIGPIPE, SIG_DFL);
    RUN(a_session_carries_bytes_both_ways);
    RUN(ten_sessions_at_once_keep_their_bytes_apart);
    RUN(a_service_that_nobody_offers_is_refused);
    RUN(a_local_service_that_resets_kills_nobody);
    RUN(a_cloud_that_resets_amid_data_kills_nobody);
    RUN(the_client_certificate_is_presented);
    return 0;
}
