/*
 * A program that loads the library with dlopen, starts tunnels and calls dlclose, with and without stopping them
 * before, and then ends in the named way. exit.c runs it: unload LIBRARY WAY DELAY_US.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "aiot_sysdep_api.h"
#include "aiot_tunnel_api.h"

#define TUNNELS 20

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

static struct {
    void *library;
    void *(*init)(void);
    int32_t (*setopt)(void *, aiot_tunnel_option_t, void *);
    void *(*start)(void *);
    int32_t (*add)(void *, char *, aiot_tunnel_connect_param_t *);
    int32_t (*deinit)(void **);
    void *handle;
    pthread_t thread;
} loaded;

static void *symbol(const char *name)
{
    void *found = dlsym(loaded.library, name);

    CHECK(found != NULL);
    return found;
}

static char *variable(const char *name)
{
    char *text = getenv(name);

    CHECK(text != NULL);
    return text;
}

static void load(const char *path)
{
    loaded.library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    CHECK(loaded.library != NULL);
    loaded.init = (void *(*)(void))symbol("aiot_tunnel_init");
    loaded.setopt = (int32_t(*)(void *, aiot_tunnel_option_t, void *))symbol("aiot_tunnel_setopt");
    loaded.start = (void *(*)(void *))symbol("aiot_tunnel_start");
    loaded.add =
        (int32_t(*)(void *, char *, aiot_tunnel_connect_param_t *))symbol("aiot_tunnel_add");
    loaded.deinit = (int32_t(*)(void **))symbol("aiot_tunnel_deinit");
}

static void set_credential(void)
{
    static char ca[65536];
    aiot_sysdep_network_cred_t cred;
    FILE *file;

    memset(&cred, 0, sizeof(cred));
    if (strcmp(variable("PEER_TLS"), "1") == 0) {
        file = fopen(variable("PEER_CA"), "rb");
        CHECK(file != NULL);
        cred.option = AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA;
        cred.sni_enabled = 1;
        cred.x509_server_cert = ca;
        cred.x509_server_cert_len = (uint32_t)fread(ca, 1, sizeof(ca) - 1, file);
        fclose(file);
    }
    CHECK(loaded.setopt(loaded.handle, AIOT_TUNNELOPT_NETWORK_CRED, &cred) == 0);
}

static void start_tunnels(void)
{
    char id[16], host[] = "127.0.0.1", path[64];
    aiot_tunnel_connect_param_t params = {host, variable("PEER_PORT"), path, variable("PEER_TOKEN")};
    int i;

    loaded.handle = loaded.init();
    CHECK(loaded.handle != NULL);
    set_credential();
    CHECK(pthread_create(&loaded.thread, NULL, loaded.start, loaded.handle) == 0);
    for (i = 0; i < TUNNELS; i++) {
        snprintf(id, sizeof(id), "t%d", i);
        snprintf(path, sizeof(path), "/tunnel/%s/dest?do=any", id);
        CHECK(loaded.add(loaded.handle, id, &params) == 0);
    }
}

static void stop_tunnels(void)
{
    CHECK(loaded.deinit(&loaded.handle) == 0);
    CHECK(pthread_join(loaded.thread, NULL) == 0);
}

static void *unload_and_exit(void *unused)
{
    (void)unused;
    CHECK(dlclose(loaded.library) == 0);
    exit(0);
    return NULL;
}

int main(int argc, char **argv)
{
    const char *way;
    int delay_us;
    pthread_t thread;

    CHECK(argc == 4);
    way = argv[2];
    delay_us = atoi(argv[3]);
    load(argv[1]);
    start_tunnels();
    usleep((useconds_t)delay_us);
    if (strcmp(way, "dlclose-thread") == 0) {
        CHECK(pthread_create(&thread, NULL, unload_and_exit, NULL) == 0);
        pthread_join(thread, NULL);
    }
    if (strcmp(way, "dlclose-stopped") == 0) {
        stop_tunnels();
    }
    CHECK(dlclose(loaded.library) == 0);
    /* What runs on without the library would crash now. */
    usleep((useconds_t)delay_us / 2);
    if (strcmp(way, "dlclose-again") == 0) {
        load(argv[1]);
        start_tunnels();
        usleep((useconds_t)delay_us);
    }
    if (strcmp(way, "dlclose-quick_exit") == 0) {
        quick_exit(0);
    }
    if (strcmp(way, "dlclose-return") == 0) {
        return 0;
    }
    exit(0);
}
