/*
 * Shared code of the test programs: checks, an event recorder, and an instance with its start
 * thread. A failed check ends the program. Every wait has a deadline.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aiot_state_api.h"
#include "aiot_sysdep_api.h"
#include "aiot_tunnel_api.h"

/* The longest wait. Only a hanging test reaches it. */
#define TIMEOUT_MS 60000

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fail(__FILE__, __LINE__, #condition);                                                  \
        }                                                                                          \
    } while (0)

#define CHECK_CODE(call, expected)                                                                 \
    do {                                                                                           \
        int32_t code_ = (call);                                                                    \
        if (code_ != (expected)) {                                                                 \
            fail_code(__FILE__, __LINE__, #call, code_, #expected);                                \
        }                                                                                          \
    } while (0)

#define RUN(test)                                                                                  \
    do {                                                                                           \
        test();                                                                                    \
        printf("ok %s\n", #test);                                                                  \
    } while (0)

void fail(const char *file, int line, const char *what);
void fail_code(const char *file, int line, const char *call, int32_t code, const char *expected);

int64_t now_ms(void);

/* A duration that the library promises; many times as long under valgrind. */
int64_t promised_ms(int64_t ms);
/* 1 under valgrind or a sanitizer. */
int under_checker(void);

/* A number from the environment, set by the peer; see peer/peer.py. */
unsigned int peer_number(const char *name);
/* The content of the file that the environment names, NUL-terminated; the caller frees it. */
char *peer_file(const char *name, uint32_t *len);
/* 1 if the peer uses TLS. */
int peer_has_tls(void);

/* Number of entries of a directory under /proc/self: "fd" or "task". */
int count_of(const char *directory);
/* Waits until there are at most that many entries. Not exactly that many: a thread that was joined
 * can remain under /proc for a moment and be included in an earlier count. */
void wait_for_at_most(const char *directory, int count);

typedef struct {
    aiot_tunnel_event_type type;
    char tunnel_id[128];
    pthread_t thread;
} seen_t;

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int count;
    seen_t seen[256];
    /* Called with each event after it was recorded; may be NULL. */
    void (*then)(void *handle, const aiot_tunnel_event_t *event);
} recorder_t;

/* An event handler; its userdata is a recorder_t. */
void record(void *handle, const aiot_tunnel_event_t *event, void *userdata);
/* Waits for the event with this index and returns it. */
seen_t recorded(recorder_t *recorder, int index);
int recorded_count(recorder_t *recorder);
#define CHECK_EVENT(recorder, index, expected_type, id)                                            \
    do {                                                                                           \
        seen_t seen_ = recorded(recorder, index);                                                  \
        CHECK(seen_.type == (expected_type));                                                      \
        CHECK(strcmp(seen_.tunnel_id, id) == 0);                                                   \
    } while (0)

typedef struct {
    void *handle;
    pthread_t thread;
    recorder_t events;
} device_t;

/* Creates an instance with the peer's credential, the peer's services _ECHO and _RESET, and the
 * recorder as its event handler. */
void device_open(device_t *device);
void device_start(device_t *device);
/* Stops, joins and frees the instance. */
void device_close(device_t *device);
void *joined(pthread_t thread);

void set_handler(void *handle, aiot_tunnel_event_handler_t handler);
void set_peer_credential(void *handle);
int32_t add_service(void *handle, const char *type, const char *ip, unsigned int port);

/* Opens or updates a tunnel to the peer. `scenario` is the query of the path. */
int32_t add(device_t *device, const char *id, const char *scenario);
int32_t update(device_t *device, const char *id, const char *scenario);
int32_t connect_tunnel(int32_t (*call)(void *, char *, aiot_tunnel_connect_param_t *),
                       void *handle, const char *id, const char *scenario, const char *token);

#endif
