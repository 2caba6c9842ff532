/* Three headers in the order that headers.py chooses, then everything that firmware uses of them. */
#include FIRST
#include SECOND
#include THIRD
#include "aiot_mqtt_api.h"
#include "core_log.h"

#define CODE(name, value) typedef char check_##name[(name) == (value) ? 1 : -1];
#include "codes.inc"
CODE(STATE_TUNNEL_BASE, -0x1C80)
CODE(STATE_TUNNEL_FAILED, -0x1C81)
CODE(STATE_TUNNEL_TIMEOUT, -0x1C82)
CODE(STATE_TUNNEL_RESET, -0x1C83)
CODE(STATE_TUNNEL_LIMIT, -0x1C84)
CODE(STATE_TUNNEL_BUSY, -0x1C85)
CODE(STATE_TUNNEL_RUNNING, -0x1C86)
CODE(STATE_TUNNEL_UNKNOWN, -0x1C87)

extern aiot_sysdep_portfile_t g_aiot_sysdep_portfile;

static int32_t state_logcb(int32_t code, char *message)
{
    (void)message;
    switch (code) {
    case STATE_MQTT_CONNECT_SUCCESS:
    case STATE_HTTP_READ_BODY_FINISHED:
    case STATE_PORT_DTLS_HANDSHAKE_IN_PROGRESS:
    case STATE_TUNNEL_LIMIT:
        return 1;
    default:
        return 0;
    }
}

int32_t firmware(const char *ca, uint32_t ca_len);

int32_t firmware(const char *ca, uint32_t ca_len)
{
    aiot_sysdep_network_cred_t cred;
    void *mqtt, *tunnel;

    aiot_sysdep_set_portfile(&g_aiot_sysdep_portfile);
    aiot_state_set_logcb(state_logcb);
    cred.option = AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA;
    cred.max_tls_fragment = 16384;
    cred.sni_enabled = 1;
    cred.x509_server_cert = ca;
    cred.x509_server_cert_len = ca_len;
    mqtt = aiot_mqtt_init();
    aiot_mqtt_connect(mqtt);
    tunnel = aiot_tunnel_init();
    return aiot_tunnel_setopt(tunnel, AIOT_TUNNELOPT_NETWORK_CRED, (void *)&cred);
}
