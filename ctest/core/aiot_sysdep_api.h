#ifndef _AIOT_SYSDEP_API_H_
#define _AIOT_SYSDEP_API_H_

#if defined(__cplusplus)
extern "C" {
#endif

#include <stdint.h>

typedef enum {
    CORE_SYSDEP_SOCKET_TCP_CLIENT,
    CORE_SYSDEP_SOCKET_TCP_SERVER,
    CORE_SYSDEP_SOCKET_UDP_CLIENT,
    CORE_SYSDEP_SOCKET_UDP_SERVER
} core_sysdep_socket_type_t;

typedef struct {
    char addr[16];
    uint16_t port;
} core_sysdep_addr_t;

typedef enum {
    CORE_SYSDEP_NETWORK_SOCKET_TYPE,
    CORE_SYSDEP_NETWORK_HOST,
    CORE_SYSDEP_NETWORK_BACKUP_IP,
    CORE_SYSDEP_NETWORK_PORT,
    CORE_SYSDEP_NETWORK_CONNECT_TIMEOUT_MS,
    CORE_SYSDEP_NETWORK_CRED,
    CORE_SYSDEP_NETWORK_PSK,
    CORE_SYSDEP_NETWORK_MAX
} core_sysdep_network_option_t;

typedef enum {
    AIOT_SYSDEP_NETWORK_CRED_NONE,
    AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA,
    AIOT_SYSDEP_NETWORK_CRED_SVRCERT_PSK,
    AIOT_SYSDEP_NETWORK_CRED_MAX
} aiot_sysdep_network_cred_option_t;

typedef struct {
    aiot_sysdep_network_cred_option_t option;
    uint32_t max_tls_fragment;
    uint8_t sni_enabled;
    const char *x509_server_cert;
    uint32_t x509_server_cert_len;
    const char *x509_client_cert;
    uint32_t x509_client_cert_len;
    const char *x509_client_privkey;
    uint32_t x509_client_privkey_len;
    char *tls_extend_info;
} aiot_sysdep_network_cred_t;

typedef struct {
    char *psk_id;
    char *psk;
} core_sysdep_psk_t;

typedef struct {
    void *(*core_sysdep_malloc)(uint32_t size, char *name);
    void (*core_sysdep_free)(void *ptr);
    uint64_t (*core_sysdep_time)(void);
    void (*core_sysdep_sleep)(uint64_t time_ms);
    void *(*core_sysdep_network_init)(void);
    int32_t (*core_sysdep_network_setopt)(void *handle, core_sysdep_network_option_t option,
                                          void *data);
    int32_t (*core_sysdep_network_establish)(void *handle);
    int32_t (*core_sysdep_network_recv)(void *handle, uint8_t *buffer, uint32_t len,
                                        uint32_t timeout_ms, core_sysdep_addr_t *addr);
    int32_t (*core_sysdep_network_send)(void *handle, uint8_t *buffer, uint32_t len,
                                        uint32_t timeout_ms, core_sysdep_addr_t *addr);
    int32_t (*core_sysdep_network_deinit)(void **handle);
    void (*core_sysdep_rand)(uint8_t *output, uint32_t output_len);
    void *(*core_sysdep_mutex_init)(void);
    void (*core_sysdep_mutex_lock)(void *mutex);
    void (*core_sysdep_mutex_unlock)(void *mutex);
    void (*core_sysdep_mutex_deinit)(void **mutex);
} aiot_sysdep_portfile_t;

void aiot_sysdep_set_portfile(aiot_sysdep_portfile_t *portfile);
aiot_sysdep_portfile_t *aiot_sysdep_get_portfile(void);

#if defined(__cplusplus)
}
#endif

#endif
