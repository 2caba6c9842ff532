/*
 * An application that keeps the core and the tunnel in one process, as firmware does: it names nothing but what
 * the Link SDK documents. link.py links it in every order, and main prints what it saw.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "aiot_mqtt_api.h"
#include "aiot_state_api.h"
#include "aiot_sysdep_api.h"
#include "aiot_tunnel_api.h"

extern aiot_sysdep_portfile_t g_aiot_sysdep_portfile;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int lines_of_core, lines_of_tunnel, refusals;

static int32_t state_logcb(int32_t code, char *message)
{
    pthread_mutex_lock(&lock);
    lines_of_core += code == STATE_MQTT_LOG_CONNECT;
    lines_of_tunnel += strstr(message, "remote proxy thread start!") != NULL;
    refusals += strstr(message, "aiot_tunnel_add") != NULL && strstr(message, "port") != NULL;
    pthread_mutex_unlock(&lock);
    return 0;
}

static int expect(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "app: not true: %s\n", what);
    }
    return holds;
}

int main(void)
{
    char id[] = "t1", host[] = "127.0.0.1", bad_port[] = "nonsense", path[] = "/", token[] = "hush-token";
    aiot_tunnel_connect_param_t params = {host, bad_port, path, token};
    aiot_sysdep_portfile_t before = g_aiot_sysdep_portfile;
    pthread_t thread;
    void *mqtt, *tunnel;
    int i, good = 1;

    aiot_sysdep_set_portfile(&g_aiot_sysdep_portfile);
    aiot_state_set_logcb(state_logcb);
    mqtt = aiot_mqtt_init();
    if (!expect(mqtt != NULL, "the core has a port file")) {
        return 1;
    }
    aiot_mqtt_connect(mqtt);
    tunnel = aiot_tunnel_init();
    if (pthread_create(&thread, NULL, aiot_tunnel_start, tunnel) != 0) {
        return 1;
    }
    good &= expect(aiot_tunnel_add(tunnel, id, &params) == STATE_USER_INPUT_OUT_RANGE, "the port is refused");
    for (i = 0; i < 2000; i++) {
        pthread_mutex_lock(&lock);
        if (lines_of_tunnel > 0 && refusals > 0) {
            i = 2000;
        }
        pthread_mutex_unlock(&lock);
        usleep(5000);
    }
    aiot_tunnel_stop(tunnel);
    pthread_join(thread, NULL);
    aiot_tunnel_deinit(&tunnel);
    good &= expect(lines_of_core == 1, "the core's line has reached the callback");
    good &= expect(lines_of_tunnel == 1, "the tunnel's lines have reached the core's callback");
    good &= expect(refusals == 1, "the refusal has reached the core's callback");
    good &= expect(aiot_mqtt_uses_own_network(mqtt), "the core's own set and get of the port file prevail");
    good &= expect(memcmp(&before, &g_aiot_sysdep_portfile, sizeof(before)) == 0, "the port file is untouched");
    aiot_mqtt_deinit(&mqtt);
    printf("%s\n", good ? "app: good" : "app: bad");
    return good ? 0 : 1;
}
