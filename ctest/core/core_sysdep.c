#include <stddef.h>

#include "core_log.h"

static aiot_sysdep_portfile_t *g_origin_portfile;
static aiot_sysdep_portfile_t g_portfile;

void aiot_sysdep_set_portfile(aiot_sysdep_portfile_t *portfile)
{
    g_origin_portfile = portfile;
    if (portfile != NULL) {
        g_portfile = *portfile;
        core_adapter_wrap(portfile->core_sysdep_network_init);
        g_portfile.core_sysdep_network_init = core_adapter_network_init;
    }
}

aiot_sysdep_portfile_t *aiot_sysdep_get_portfile(void)
{
    return g_origin_portfile == NULL ? NULL : &g_portfile;
}
