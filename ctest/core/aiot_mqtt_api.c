#include "aiot_mqtt_api.h"

#include <stddef.h>

#include "core_log.h"

typedef struct {
    aiot_sysdep_portfile_t *sysdep;
    void *mutex;
} mqtt_handle_t;

void *aiot_mqtt_init(void)
{
    static char name[] = "MQTT";
    aiot_sysdep_portfile_t *sysdep = aiot_sysdep_get_portfile();
    mqtt_handle_t *handle;

    if (sysdep == NULL) {
        return NULL;
    }
    /* Without a look at the pointer, as in the SDK. */
    handle = (mqtt_handle_t *)sysdep->core_sysdep_malloc(sizeof(*handle), name);
    handle->sysdep = sysdep;
    handle->mutex = sysdep->core_sysdep_mutex_init();
    return handle;
}

int32_t aiot_mqtt_connect(void *handle)
{
    mqtt_handle_t *mqtt = (mqtt_handle_t *)handle;

    mqtt->sysdep->core_sysdep_mutex_lock(mqtt->mutex);
    core_log(mqtt->sysdep, STATE_MQTT_LOG_CONNECT, "mqtt connect");
    mqtt->sysdep->core_sysdep_mutex_unlock(mqtt->mutex);
    return STATE_SUCCESS;
}

int32_t aiot_mqtt_uses_own_network(void *handle)
{
    mqtt_handle_t *mqtt = (mqtt_handle_t *)handle;

    return mqtt->sysdep->core_sysdep_network_init == core_adapter_network_init &&
           mqtt->sysdep->core_sysdep_network_init() != NULL;
}

int32_t aiot_mqtt_deinit(void **handle)
{
    mqtt_handle_t *mqtt = (mqtt_handle_t *)*handle;

    mqtt->sysdep->core_sysdep_mutex_deinit(&mqtt->mutex);
    mqtt->sysdep->core_sysdep_free(mqtt);
    *handle = NULL;
    return STATE_SUCCESS;
}
