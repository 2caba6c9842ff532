/*
 * Firmware whose certificates, host names and services the Link SDK accepts: an intermediate certificate or the
 * cloud's own as trust anchor, a bundle with a broken certificate, a host with a dot at its end, a service that
 * is added while the tunnel is open.
 */
#include "harness.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

static const char broken[] = "-----BEGIN CERTIFICATE-----\nMIIBdzCCAR2g\n-----END CERTIFICATE-----\n";

/* The texts, one after the other. The caller frees it. */
static char *joined_texts(const char *first, const char *second, const char *third)
{
    char *text = malloc(strlen(first) + strlen(second) + strlen(third) + 1);

    CHECK(text != NULL);
    sprintf(text, "%s%s%s", first, second, third);
    return text;
}

static int32_t trust(void *handle, const char *anchors)
{
    aiot_sysdep_network_cred_t cred;

    memset(&cred, 0, sizeof(cred));
    cred.option = AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA;
    cred.sni_enabled = 1;
    cred.x509_server_cert = anchors;
    cred.x509_server_cert_len = (uint32_t)strlen(anchors);
    return aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_NETWORK_CRED, &cred);
}

static void add_host(device_t *device, const char *id, const char *host)
{
    char name[64], host_text[64], port[16], path[64], token[128];
    aiot_tunnel_connect_param_t params = {host_text, port, path, token};

    snprintf(name, sizeof(name), "%s", id);
    snprintf(host_text, sizeof(host_text), "%s", host);
    snprintf(port, sizeof(port), "%u", peer_number("PEER_PORT"));
    snprintf(path, sizeof(path), "/tunnel/%s/dest?do=any", id);
    snprintf(token, sizeof(token), "%s", getenv("PEER_TOKEN"));
    CHECK_CODE(aiot_tunnel_add(device->handle, name, &params), STATE_SUCCESS);
}

/* Waits until the tunnel is open, or until an attempt has failed. 1: it is open. */
static int is_open(device_t *device, const char *id)
{
    aiot_tunnel_status_t status;
    int64_t deadline = now_ms() + TIMEOUT_MS;
    int32_t code;

    for (;;) {
        memset(&status, 0, sizeof(status));
        status.size = sizeof(status);
        code = aiot_tunnel_get_status(device->handle, id, &status);
        CHECK(code == STATE_SUCCESS || code == STATE_TUNNEL_UNKNOWN);
        if (code == STATE_SUCCESS && status.state == AIOT_TUNNEL_STATE_CONNECTED) {
            return 1;
        }
        if (status.last_error[0] != '\0') {
            return 0;
        }
        CHECK(now_ms() < deadline);
        usleep(1000);
    }
}

static void check_anchors(const char *id, const char *anchors, const char *host, int opens)
{
    device_t device;

    device_open(&device);
    CHECK_CODE(trust(device.handle, anchors), STATE_SUCCESS);
    device_start(&device);
    add_host(&device, id, host);
    CHECK(is_open(&device, id) == opens);
    device_close(&device);
}

static void an_anchor_may_be_an_intermediate_or_the_clouds_own_certificate(void)
{
    uint32_t len;
    char *own = peer_file("PEER_CERT", &len), *intermediate = peer_file("PEER_INTERMEDIATE", &len);
    char *client = peer_file("PEER_CLIENT_CERT", &len);

    check_anchors("own", own, "127.0.0.1", 1);
    check_anchors("intermediate", intermediate, "127.0.0.1", 1);
    /* Any other certificate is no anchor, and the name is still checked. */
    check_anchors("other", client, "127.0.0.1", 0);
    check_anchors("name", own, "127.0.0.2", 0);
    free(own);
    free(intermediate);
    free(client);
}

static void a_broken_certificate_in_a_bundle_is_skipped(void)
{
    uint32_t len;
    char *ca = peer_file("PEER_CA", &len);
    char *before = joined_texts(broken, ca, ""), *after = joined_texts(ca, "# comment\n", broken);
    void *handle = aiot_tunnel_init();

    check_anchors("before", before, "127.0.0.1", 1);
    check_anchors("after", after, "127.0.0.1", 1);
    CHECK_CODE(trust(handle, broken), STATE_PORT_TLS_INVALID_SERVER_CERT);
    CHECK_CODE(aiot_tunnel_deinit(&handle), STATE_SUCCESS);
    free(before);
    free(after);
    free(ca);
}

static void a_host_may_end_in_a_dot(void)
{
    struct addrinfo *found = NULL;
    uint32_t len;
    char *ca;

    if (getaddrinfo("localhost.", NULL, NULL, &found) != 0) {
        printf("a_host_may_end_in_a_dot is SKIPPED: localhost. does not resolve here\n");
        return;
    }
    freeaddrinfo(found);
    ca = peer_file("PEER_CA", &len);
    check_anchors("dot", ca, "localhost.", 1);
    free(ca);
}

static void a_service_added_later_is_seen_by_an_open_tunnel(void)
{
    device_t device;

    device_open(&device);
    device_start(&device);
    CHECK_CODE(add(&device, "late", "late"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "late");
    usleep(100000);
    CHECK_CODE(add_service(device.handle, "_LATE", "127.0.0.1", peer_number("PEER_ECHO_PORT")),
               STATE_SUCCESS);
    CHECK_EVENT(&device.events, 1, AIOT_TUNNEL_EVT_DISCONNECT, "late");
    CHECK_EVENT(&device.events, 2, AIOT_TUNNEL_EVT_EXPIRED, "late");
    device_close(&device);
}

int main(void)
{
    if (peer_has_tls()) {
        RUN(an_anchor_may_be_an_intermediate_or_the_clouds_own_certificate);
        RUN(a_broken_certificate_in_a_bundle_is_skipped);
        RUN(a_host_may_end_in_a_dot);
    }
    RUN(a_service_added_later_is_seen_by_an_open_tunnel);
    return 0;
}
