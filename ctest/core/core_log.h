#ifndef _CORE_LOG_H_
#define _CORE_LOG_H_

#if defined(__cplusplus)
extern "C" {
#endif

#include "aiot_state_api.h"
#include "aiot_sysdep_api.h"

void core_log(aiot_sysdep_portfile_t *sysdep, int32_t code, const char *text);
void core_adapter_wrap(void *(*network_init)(void));
void *core_adapter_network_init(void);

#if defined(__cplusplus)
}
#endif

#endif
