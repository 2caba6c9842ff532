/* Every function returns the right code for every kind of bad argument, and queues nothing. */
#include "harness.h"

#define MADE_UP ((void *)0x1234)

static char long_text[] = "0123456789012345678901234567890123456789012345678901234567890123"
                          "0123456789012345678901234567890123456789012345678901234567890123";

static int32_t start_code(void *handle)
{
    void *result = aiot_tunnel_start(handle);

    CHECK(result != NULL);
    return *(int32_t *)result;
}

static aiot_tunnel_connect_param_t good_params(void)
{
    static char host[] = "127.0.0.1", port[] = "1", path[] = "/tunnel/t/dest", token[] = "hush-t";
    aiot_tunnel_connect_param_t params = {host, port, path, token};

    return params;
}

static void *stale_handle(void)
{
    void *handle = aiot_tunnel_init(), *stale = handle;

    CHECK_CODE(aiot_tunnel_deinit(&handle), STATE_SUCCESS);
    return stale;
}

/* `handle` is not valid: every function returns `code`. */
static void check_no_handle(void *handle, int32_t code)
{
    aiot_tunnel_connect_param_t params = good_params();
    char id[] = "t";
    void *variable = handle;

    CHECK_CODE(aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_USERDATA, &params), code);
    CHECK_CODE(aiot_tunnel_add(handle, id, &params), code);
    CHECK_CODE(aiot_tunnel_update(handle, id, &params), code);
    CHECK_CODE(aiot_tunnel_delete(handle, id), code);
    CHECK_CODE(aiot_tunnel_stop(handle), code);
    CHECK_CODE(start_code(handle), code);
    CHECK_CODE(aiot_tunnel_deinit(&variable), code);
    CHECK(variable == handle);
}

static void handles_that_are_none_get_a_code(void)
{
    int on_the_stack = 0;
    uintptr_t live;
    void *handle = aiot_tunnel_init();

    check_no_handle(NULL, STATE_USER_INPUT_NULL_POINTER);
    check_no_handle(stale_handle(), STATE_USER_INPUT_EXEC_DISABLED);
    check_no_handle(MADE_UP, STATE_USER_INPUT_EXEC_DISABLED);
    check_no_handle(&on_the_stack, STATE_USER_INPUT_EXEC_DISABLED);
    check_no_handle((void *)UINTPTR_MAX, STATE_USER_INPUT_EXEC_DISABLED);
    live = (uintptr_t)handle;
    check_no_handle((void *)(live + 1), STATE_USER_INPUT_EXEC_DISABLED);
    CHECK_CODE(aiot_tunnel_deinit(NULL), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_deinit(&handle), STATE_SUCCESS);
    CHECK(handle == NULL);
    CHECK_CODE(aiot_tunnel_deinit(&handle), STATE_USER_INPUT_NULL_POINTER);
}

static void handles_are_never_used_again(void)
{
    void *first = stale_handle();
    int i;

    for (i = 0; i < 100; i++) {
        CHECK(stale_handle() != first);
    }
}

static void options_out_of_range_are_refused_before_the_handle_is_looked_at(void)
{
    void *handle = aiot_tunnel_init();
    int data = 0;

    CHECK_CODE(aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_MAX, &data), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_setopt(handle, (aiot_tunnel_option_t)77, &data),
               STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_setopt(handle, (aiot_tunnel_option_t)-1, &data),
               STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_setopt(MADE_UP, AIOT_TUNNELOPT_MAX, &data), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_MAX, NULL),
               STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_setopt(NULL, AIOT_TUNNELOPT_MAX, &data), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_deinit(&handle), STATE_SUCCESS);
}

static void malformed_services_are_refused(void)
{
    void *handle = aiot_tunnel_init();
    aiot_tunnel_service_t service;

    CHECK_CODE(add_service(handle, "_SSH", "127.0.0.1", 22), STATE_SUCCESS);
    CHECK_CODE(add_service(handle, "_SSH", "127.0.0.1", 65535), STATE_SUCCESS);
    CHECK_CODE(add_service(handle, "_V6", "::1", 1), STATE_SUCCESS);
    CHECK_CODE(add_service(handle, "_NAME", "localhost", 1), STATE_SUCCESS);
    CHECK_CODE(add_service(handle, "", "127.0.0.1", 22), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(add_service(handle, "_SSH", "", 22), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(add_service(handle, "_SSH", "127.0.0.1", 0), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(add_service(handle, "_SSH", "127.0.0.1", 65536), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(add_service(handle, "_SSH", "127.0.0.1", UINT32_MAX), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(add_service(handle, "a\nb", "127.0.0.1", 22), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(add_service(handle, "\xff\xfe", "127.0.0.1", 22), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(add_service(handle, "_SSH", "127.0.0.1 ", 22), STATE_USER_INPUT_OUT_RANGE);
    memset(&service, 'x', sizeof(service));
    service.port = 22;
    CHECK_CODE(aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_ADD_SERVICE, &service),
               STATE_USER_INPUT_OUT_RANGE);
    memset(service.ip, 0, sizeof(service.ip));
    memcpy(service.ip, "127.0.0.1", 9);
    CHECK_CODE(aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_ADD_SERVICE, &service),
               STATE_USER_INPUT_OUT_RANGE);
    service.type[127] = '\0';
    CHECK_CODE(aiot_tunnel_setopt(handle, AIOT_TUNNELOPT_ADD_SERVICE, &service), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_deinit(&handle), STATE_SUCCESS);
}

static void *the_handle;

static int32_t set_cred(const aiot_sysdep_network_cred_t *cred)
{
    aiot_sysdep_network_cred_t copy = *cred;

    return aiot_tunnel_setopt(the_handle, AIOT_TUNNELOPT_NETWORK_CRED, &copy);
}

static void credentials_that_cannot_be_used_are_refused(void)
{
    aiot_sysdep_network_cred_t none, ca, cred;
    char *ca_text, *cert, *key;
    uint32_t ca_len, cert_len, key_len;

    the_handle = aiot_tunnel_init();
    ca_text = peer_file("PEER_CA", &ca_len);
    cert = peer_file("PEER_CLIENT_CERT", &cert_len);
    key = peer_file("PEER_CLIENT_KEY", &key_len);
    memset(&none, 0, sizeof(none));
    memset(&ca, 0, sizeof(ca));
    ca.option = AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA;
    ca.x509_server_cert = ca_text;
    ca.x509_server_cert_len = ca_len;

    CHECK_CODE(set_cred(&none), STATE_SUCCESS);
    CHECK_CODE(set_cred(&ca), STATE_SUCCESS);
    cred = ca;
    cred.x509_server_cert_len = ca_len + 1; /* with its NUL, as sizeof counts */
    CHECK_CODE(set_cred(&cred), STATE_SUCCESS);

    cred = ca;
    cred.option = AIOT_SYSDEP_NETWORK_CRED_SVRCERT_PSK;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_CRED_OPTION);
    cred.option = AIOT_SYSDEP_NETWORK_CRED_MAX;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_CRED_OPTION);
    cred.option = (aiot_sysdep_network_cred_option_t)-7;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_CRED_OPTION);

    cred = ca;
    cred.x509_server_cert = NULL;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_SERVER_CERT);
    cred = ca;
    cred.x509_server_cert_len = 0;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_SERVER_CERT);
    cred.x509_server_cert = "\0\0\0";
    cred.x509_server_cert_len = 3;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_SERVER_CERT);
    cred.x509_server_cert = "no PEM";
    cred.x509_server_cert_len = 6;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_SERVER_CERT);
    cred = ca;
    cred.x509_server_cert_len = ca_len / 2;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_SERVER_CERT);

    cred = ca;
    cred.x509_client_cert = cert;
    cred.x509_client_cert_len = cert_len;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_CLIENT_KEY);
    cred.x509_client_privkey = key;
    cred.x509_client_privkey_len = key_len;
    CHECK_CODE(set_cred(&cred), STATE_SUCCESS);
    cred.x509_client_privkey_len = key_len / 2;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_CLIENT_KEY);
    cred.x509_client_privkey_len = key_len;
    cred.x509_client_cert_len = cert_len / 2;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_CLIENT_CERT);
    cred.x509_client_cert = ca_text; /* the key does not belong to it */
    cred.x509_client_cert_len = ca_len;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_CLIENT_KEY);
    cred.x509_client_cert = NULL;
    CHECK_CODE(set_cred(&cred), STATE_PORT_TLS_INVALID_CLIENT_CERT);

    free(ca_text);
    free(cert);
    free(key);
    CHECK_CODE(aiot_tunnel_deinit(&the_handle), STATE_SUCCESS);
}

/* Calls add and update with one member replaced. */
static void check_params(int member, char *text, int32_t code)
{
    aiot_tunnel_connect_param_t params = good_params();
    char **members[] = {&params.host, &params.port, &params.path, &params.token};
    char id[] = "t";

    *members[member] = text;
    CHECK_CODE(aiot_tunnel_add(the_handle, id, &params), code);
    CHECK_CODE(aiot_tunnel_update(the_handle, id, &params), code);
}

enum { HOST, PORT, PATH, TOKEN };

static void malformed_connection_data_is_refused(void)
{
    static char empty[] = "", crlf[] = "a\r\nX: y", blank[] = "a b", eight_bit[] = "\xc3\xa4";
    static char zero[] = "0", too_big[] = "65536", sign[] = "+1", hex[] = "0x16", word[] = "ssh";
    static char negative[] = "-1", trailing[] = "22 ", huge[] = "99999999999999999999";
    char *bad_ports[] = {empty, zero, too_big, sign, hex, word, negative, trailing, huge};
    char *bad_texts[] = {crlf, blank, eight_bit, long_text};
    aiot_tunnel_connect_param_t params = good_params();
    char id[] = "t";
    size_t i;
    int member;

    the_handle = aiot_tunnel_init();
    CHECK_CODE(aiot_tunnel_add(the_handle, NULL, &params), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_add(the_handle, id, NULL), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_update(the_handle, NULL, &params), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_update(the_handle, id, NULL), STATE_USER_INPUT_NULL_POINTER);
    CHECK_CODE(aiot_tunnel_delete(the_handle, NULL), STATE_USER_INPUT_NULL_POINTER);
    for (member = HOST; member <= TOKEN; member++) {
        check_params(member, NULL, STATE_USER_INPUT_NULL_POINTER);
        check_params(member, long_text, STATE_USER_INPUT_OUT_RANGE);
    }
    for (i = 0; i < sizeof(bad_ports) / sizeof(bad_ports[0]); i++) {
        check_params(PORT, bad_ports[i], STATE_USER_INPUT_OUT_RANGE);
    }
    for (i = 0; i < sizeof(bad_texts) / sizeof(bad_texts[0]); i++) {
        check_params(HOST, bad_texts[i], STATE_USER_INPUT_OUT_RANGE);
        check_params(PATH, bad_texts[i], STATE_USER_INPUT_OUT_RANGE);
        check_params(TOKEN, bad_texts[i], STATE_USER_INPUT_OUT_RANGE);
    }
    check_params(HOST, empty, STATE_USER_INPUT_OUT_RANGE);
    check_params(PATH, empty, STATE_SUCCESS);
    check_params(TOKEN, empty, STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_deinit(&the_handle), STATE_SUCCESS);
}

/* The buffer has exactly 128 bytes, so that a checker reports a read beyond them. */
static void texts_are_scanned_for_128_bytes_and_no_more(void)
{
    char *field = malloc(128);
    aiot_tunnel_connect_param_t params = good_params();
    char id[] = "t";

    the_handle = aiot_tunnel_init();
    CHECK(field != NULL);
    memset(field, '1', 128);
    CHECK_CODE(aiot_tunnel_add(the_handle, field, &params), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_update(the_handle, field, &params), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_delete(the_handle, field), STATE_USER_INPUT_OUT_RANGE);
    check_params(HOST, field, STATE_USER_INPUT_OUT_RANGE);
    check_params(PORT, field, STATE_USER_INPUT_OUT_RANGE);
    check_params(PATH, field, STATE_USER_INPUT_OUT_RANGE);
    check_params(TOKEN, field, STATE_USER_INPUT_OUT_RANGE);
    field[127] = '\0';
    CHECK_CODE(aiot_tunnel_add(the_handle, field, &params), STATE_SUCCESS);
    check_params(HOST, field, STATE_SUCCESS);
    check_params(TOKEN, field, STATE_SUCCESS);
    field[0] = '\0';
    CHECK_CODE(aiot_tunnel_add(the_handle, field, &params), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_delete(the_handle, field), STATE_USER_INPUT_OUT_RANGE);
    CHECK_CODE(aiot_tunnel_delete(the_handle, id), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_deinit(&the_handle), STATE_SUCCESS);
    free(field);
}

static void the_21st_tunnel_is_refused_and_an_update_of_the_20_works(void)
{
    aiot_tunnel_connect_param_t params = good_params();
    char id[16];
    int i;

    the_handle = aiot_tunnel_init();
    for (i = 0; i < 20; i++) {
        snprintf(id, sizeof(id), "t%d", i);
        CHECK_CODE(aiot_tunnel_add(the_handle, id, &params), STATE_SUCCESS);
    }
    CHECK_CODE(aiot_tunnel_update(the_handle, id, &params), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_add(the_handle, id, &params), STATE_SUCCESS);
    snprintf(id, sizeof(id), "t20");
    CHECK_CODE(aiot_tunnel_add(the_handle, id, &params), STATE_TUNNEL_LIMIT);
    CHECK_CODE(aiot_tunnel_update(the_handle, id, &params), STATE_TUNNEL_LIMIT);
    snprintf(id, sizeof(id), "t7");
    CHECK_CODE(aiot_tunnel_delete(the_handle, id), STATE_SUCCESS);
    snprintf(id, sizeof(id), "t20");
    CHECK_CODE(aiot_tunnel_add(the_handle, id, &params), STATE_SUCCESS);
    CHECK_CODE(aiot_tunnel_deinit(&the_handle), STATE_SUCCESS);
}

static void commands_that_nobody_takes_are_bounded(void)
{
    char id[] = "t";
    int i;

    the_handle = aiot_tunnel_init();
    for (i = 0; i < 4096; i++) {
        CHECK_CODE(aiot_tunnel_delete(the_handle, id), STATE_SUCCESS);
    }
    CHECK_CODE(aiot_tunnel_delete(the_handle, id), STATE_TUNNEL_BUSY);
    CHECK_CODE(aiot_tunnel_deinit(&the_handle), STATE_SUCCESS);
}

static void the_port_file_is_accepted_and_returned(void)
{
    aiot_sysdep_portfile_t own;

    memset(&own, 0xFF, sizeof(own)); /* its content is never read */
    CHECK(aiot_sysdep_get_portfile() == NULL);
    aiot_sysdep_set_portfile(&own);
    CHECK(aiot_sysdep_get_portfile() == &own);
    aiot_sysdep_set_portfile(&g_aiot_sysdep_portfile);
    CHECK(aiot_sysdep_get_portfile() == &g_aiot_sysdep_portfile);
    aiot_sysdep_set_portfile(NULL);
    CHECK(aiot_sysdep_get_portfile() == NULL);
}

static void the_version_is_that_of_the_header(void)
{
    char text[64];

    CHECK(strcmp(aiot_tunnel_version(), AIOT_TUNNEL_VERSION) == 0);
    snprintf(text, sizeof(text), "%d.%d.%d", AIOT_TUNNEL_VERSION_MAJOR, AIOT_TUNNEL_VERSION_MINOR,
             AIOT_TUNNEL_VERSION_PATCH);
    CHECK(strcmp(text, AIOT_TUNNEL_VERSION) == 0);
}

int main(void)
{
    RUN(handles_that_are_none_get_a_code);
    RUN(handles_are_never_used_again);
    RUN(options_out_of_range_are_refused_before_the_handle_is_looked_at);
    RUN(malformed_services_are_refused);
    RUN(credentials_that_cannot_be_used_are_refused);
    RUN(malformed_connection_data_is_refused);
    RUN(texts_are_scanned_for_128_bytes_and_no_more);
    RUN(the_21st_tunnel_is_refused_and_an_update_of_the_20_works);
    RUN(commands_that_nobody_takes_are_bounded);
    RUN(the_port_file_is_accepted_and_returned);
    RUN(the_version_is_that_of_the_header);
    return 0;
}
