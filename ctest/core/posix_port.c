#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "aiot_sysdep_api.h"

static int network;

static void *port_malloc(uint32_t size, char *name)
{
    (void)name;
    return malloc(size);
}

static void port_free(void *ptr)
{
    free(ptr);
}

static uint64_t port_time(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void port_sleep(uint64_t time_ms)
{
    usleep((useconds_t)time_ms * 1000);
}

static void *port_network_init(void)
{
    return &network;
}

static int32_t port_network_setopt(void *handle, core_sysdep_network_option_t option, void *data)
{
    (void)handle;
    (void)option;
    (void)data;
    return 0;
}

static int32_t port_network_establish(void *handle)
{
    (void)handle;
    return 0;
}

static int32_t port_network_move(void *handle, uint8_t *buffer, uint32_t len, uint32_t timeout_ms,
                                 core_sysdep_addr_t *addr)
{
    (void)handle;
    (void)buffer;
    (void)timeout_ms;
    (void)addr;
    return (int32_t)len;
}

static int32_t port_network_deinit(void **handle)
{
    *handle = NULL;
    return 0;
}

static void port_rand(uint8_t *output, uint32_t output_len)
{
    memset(output, 4, output_len);
}

static void *port_mutex_init(void)
{
    pthread_mutex_t *mutex = (pthread_mutex_t *)malloc(sizeof(*mutex));

    pthread_mutex_init(mutex, NULL);
    return mutex;
}

static void port_mutex_lock(void *mutex)
{
    pthread_mutex_lock((pthread_mutex_t *)mutex);
}

static void port_mutex_unlock(void *mutex)
{
    pthread_mutex_unlock((pthread_mutex_t *)mutex);
}

static void port_mutex_deinit(void **mutex)
{
    pthread_mutex_destroy((pthread_mutex_t *)*mutex);
    free(*mutex);
    *mutex = NULL;
}

aiot_sysdep_portfile_t g_aiot_sysdep_portfile = {
    port_malloc,         port_free,
    port_time,           port_sleep,
    port_network_init,   port_network_setopt,
    port_network_establish, port_network_move,
    port_network_move,   port_network_deinit,
    port_rand,           port_mutex_init,
    port_mutex_lock,     port_mutex_unlock,
    port_mutex_deinit,
};
