#include "core_log.h"

#include <stdio.h>

extern aiot_state_logcb_t g_logcb_handler;

void core_log(aiot_sysdep_portfile_t *sysdep, int32_t code, const char *text)
{
    char line[256];
    uint64_t now = sysdep->core_sysdep_time();

    if (g_logcb_handler == NULL) {
        return;
    }
    snprintf(line, sizeof(line), "[%u.%03u][LK-%04X] %s\r\n", (unsigned int)(now / 1000),
             (unsigned int)(now % 1000), (unsigned int)-code, text);
    g_logcb_handler(code, line);
}
