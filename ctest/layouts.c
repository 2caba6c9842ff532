/* Layout of every public type and value of every constant, as in compiled firmware (LP64). */
#include <stddef.h>

#include "aiot_state_api.h"
#include "aiot_sysdep_api.h"
#include "aiot_tunnel_api.h"

#define SIZE(type, size) _Static_assert(sizeof(type) == (size), #type)
#define FIELD(type, field, offset, size)                                                           \
    _Static_assert(offsetof(type, field) == (offset), #type "." #field);                           \
    _Static_assert(sizeof(((type *)0)->field) == (size), #type "." #field)
#define VALUE(name, value) _Static_assert((name) == (value), #name)
#define IS(expression, type) _Static_assert(_Generic((expression), type : 1, default : 0), #expression)

SIZE(void *, 8);

SIZE(aiot_tunnel_event_type, 4);
VALUE(AIOT_TUNNEL_EVT_CONNECT, 0);
VALUE(AIOT_TUNNEL_EVT_DISCONNECT, 1);
VALUE(AIOT_TUNNEL_EVT_EXPIRED, 2);

SIZE(aiot_tunnel_event_t, 132);
FIELD(aiot_tunnel_event_t, type, 0, 4);
FIELD(aiot_tunnel_event_t, tunnel_id, 4, 128);

SIZE(aiot_tunnel_service_t, 260);
FIELD(aiot_tunnel_service_t, type, 0, 128);
FIELD(aiot_tunnel_service_t, ip, 128, 128);
FIELD(aiot_tunnel_service_t, port, 256, 4);
IS(((aiot_tunnel_service_t *)0)->port, unsigned int);

SIZE(aiot_tunnel_connect_param_t, 32);
FIELD(aiot_tunnel_connect_param_t, host, 0, 8);
FIELD(aiot_tunnel_connect_param_t, port, 8, 8);
FIELD(aiot_tunnel_connect_param_t, path, 16, 8);
FIELD(aiot_tunnel_connect_param_t, token, 24, 8);
IS(((aiot_tunnel_connect_param_t *)0)->host, char *);
IS(((aiot_tunnel_connect_param_t *)0)->port, char *);
IS(((aiot_tunnel_connect_param_t *)0)->path, char *);
IS(((aiot_tunnel_connect_param_t *)0)->token, char *);

SIZE(aiot_tunnel_option_t, 4);
VALUE(AIOT_TUNNELOPT_EVENT_HANDLER, 0);
VALUE(AIOT_TUNNELOPT_USERDATA, 1);
VALUE(AIOT_TUNNELOPT_NETWORK_CRED, 2);
VALUE(AIOT_TUNNELOPT_ADD_SERVICE, 3);
VALUE(AIOT_TUNNELOPT_MAX, 4);

SIZE(aiot_tunnel_event_handler_t, 8);
IS((aiot_tunnel_event_handler_t)0, void (*)(void *, const aiot_tunnel_event_t *, void *));

SIZE(aiot_sysdep_network_cred_option_t, 4);
VALUE(AIOT_SYSDEP_NETWORK_CRED_NONE, 0);
VALUE(AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA, 1);
VALUE(AIOT_SYSDEP_NETWORK_CRED_SVRCERT_PSK, 2);
VALUE(AIOT_SYSDEP_NETWORK_CRED_MAX, 3);

SIZE(aiot_sysdep_network_cred_t, 72);
FIELD(aiot_sysdep_network_cred_t, option, 0, 4);
FIELD(aiot_sysdep_network_cred_t, max_tls_fragment, 4, 4);
FIELD(aiot_sysdep_network_cred_t, sni_enabled, 8, 1);
FIELD(aiot_sysdep_network_cred_t, x509_server_cert, 16, 8);
FIELD(aiot_sysdep_network_cred_t, x509_server_cert_len, 24, 4);
FIELD(aiot_sysdep_network_cred_t, x509_client_cert, 32, 8);
FIELD(aiot_sysdep_network_cred_t, x509_client_cert_len, 40, 4);
FIELD(aiot_sysdep_network_cred_t, x509_client_privkey, 48, 8);
FIELD(aiot_sysdep_network_cred_t, x509_client_privkey_len, 56, 4);
FIELD(aiot_sysdep_network_cred_t, tls_extend_info, 64, 8);
IS(((aiot_sysdep_network_cred_t *)0)->x509_server_cert, const char *);
IS(((aiot_sysdep_network_cred_t *)0)->tls_extend_info, char *);

SIZE(aiot_state_logcb_t, 8);
IS((aiot_state_logcb_t)0, int32_t (*)(int32_t, char *));

SIZE(aiot_sysdep_portfile_t, 120);
FIELD(aiot_sysdep_portfile_t, core_sysdep_malloc, 0, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_free, 8, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_time, 16, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_sleep, 24, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_network_init, 32, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_network_setopt, 40, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_network_establish, 48, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_network_recv, 56, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_network_send, 64, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_network_deinit, 72, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_rand, 80, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_mutex_init, 88, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_mutex_lock, 96, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_mutex_unlock, 104, 8);
FIELD(aiot_sysdep_portfile_t, core_sysdep_mutex_deinit, 112, 8);
IS(g_aiot_sysdep_portfile, aiot_sysdep_portfile_t);

IS(&aiot_tunnel_init, void *(*)(void));
IS(&aiot_tunnel_setopt, int32_t (*)(void *, aiot_tunnel_option_t, void *));
IS(&aiot_tunnel_deinit, int32_t (*)(void **));
IS(&aiot_tunnel_start, void *(*)(void *));
IS(&aiot_tunnel_stop, int32_t (*)(void *));
IS(&aiot_tunnel_add, int32_t (*)(void *, char *, aiot_tunnel_connect_param_t *));
IS(&aiot_tunnel_update, int32_t (*)(void *, char *, aiot_tunnel_connect_param_t *));
IS(&aiot_tunnel_delete, int32_t (*)(void *, char *));
IS(&aiot_tunnel_set_logcb, int32_t (*)(aiot_state_logcb_t));
IS(&aiot_tunnel_version, const char *(*)(void));
IS(&aiot_state_set_logcb, int32_t (*)(aiot_state_logcb_t));
IS(&aiot_sysdep_set_portfile, void (*)(aiot_sysdep_portfile_t *));
IS(&aiot_sysdep_get_portfile, aiot_sysdep_portfile_t *(*)(void));

VALUE(STATE_SUCCESS, 0);
VALUE(STATE_USER_INPUT_BASE, -0x0100);
VALUE(STATE_USER_INPUT_NULL_POINTER, -0x0101);
VALUE(STATE_USER_INPUT_OUT_RANGE, -0x0102);
VALUE(STATE_USER_INPUT_UNKNOWN_OPTION, -0x0103);
VALUE(STATE_USER_INPUT_MISSING_HOST, -0x0108);
VALUE(STATE_USER_INPUT_EXEC_DISABLED, -0x0109);
VALUE(STATE_SYS_DEPEND_BASE, -0x0200);
VALUE(STATE_SYS_DEPEND_MALLOC_FAILED, -0x0201);
VALUE(STATE_SYS_DEPEND_NWK_EST_FAILED, -0x0203);
VALUE(STATE_SYS_DEPEND_NWK_CLOSED, -0x0204);
VALUE(STATE_SYS_DEPEND_NWK_INVALID_CRED, -0x0208);
VALUE(STATE_PORT_BASE, -0x0F00);
VALUE(STATE_PORT_MALLOC_FAILED, -0x0F03);
VALUE(STATE_PORT_NETWORK_DNS_FAILED, -0x0F0B);
VALUE(STATE_PORT_NETWORK_CONNECT_TIMEOUT, -0x0F0F);
VALUE(STATE_PORT_NETWORK_CONNECT_FAILED, -0x0F10);
VALUE(STATE_PORT_TLS_INVALID_CRED_OPTION, -0x0F16);
VALUE(STATE_PORT_TLS_INVALID_SERVER_CERT, -0x0F18);
VALUE(STATE_PORT_TLS_INVALID_CLIENT_CERT, -0x0F19);
VALUE(STATE_PORT_TLS_INVALID_CLIENT_KEY, -0x0F1A);
VALUE(STATE_PORT_TLS_INVALID_HANDSHAKE, -0x0F23);
VALUE(STATE_ADAPTER_COMMON, -0x1000);
VALUE(STATE_TUNNEL_BASE, -0x1C80);
VALUE(STATE_TUNNEL_FAILED, -0x1C81);
VALUE(STATE_TUNNEL_TIMEOUT, -0x1C82);
VALUE(STATE_TUNNEL_RESET, -0x1C83);
VALUE(STATE_TUNNEL_LIMIT, -0x1C84);
VALUE(STATE_TUNNEL_BUSY, -0x1C85);
VALUE(STATE_TUNNEL_RUNNING, -0x1C86);

int main(void)
{
    return 0;
}
