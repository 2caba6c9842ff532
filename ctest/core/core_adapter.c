#include <stddef.h>

#include "core_log.h"

static void *(*g_network_init)(void);

void core_adapter_wrap(void *(*network_init)(void))
{
    g_network_init = network_init;
}

void *core_adapter_network_init(void)
{
    return g_network_init == NULL ? NULL : g_network_init();
}
