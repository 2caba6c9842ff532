#ifndef __AIOT_MQTT_API_H__
#define __AIOT_MQTT_API_H__

#if defined(__cplusplus)
extern "C" {
#endif

#include <stdint.h>

/* NULL if no working port file is set. */
void *aiot_mqtt_init(void);
/* Writes a log line, as every function of the core does. */
int32_t aiot_mqtt_connect(void *handle);
/* 1 if the network functions that the core uses are those that it has put in front itself. */
int32_t aiot_mqtt_uses_own_network(void *handle);
int32_t aiot_mqtt_deinit(void **handle);

#if defined(__cplusplus)
}
#endif

#endif
