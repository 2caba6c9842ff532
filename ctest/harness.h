/*
 * What the test programs share: checks, a recorder of events, and an instance beside its start
 * thread. A failed check ends the program; nothing waits without a deadline.
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

/* Nothing takes this long unless it hangs. */
#define PATIENCE_MS 60000

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

/* A duration that the library promises, or many times as much under valgrind. */
int64_t promised_ms(int64_t ms);
/* 1 under valgrind or a sanitizer. */
int under_checker(void);

/* A number from the environment that the peer has set; see peer/peer.py. */
unsigned int peer_number(const char *name);
/* A file that the environment names, NUL-terminated; free it. */
char *peer_file(const char *name, uint32_t *len);
/* 1 when there is a peer. */
int peer_has_tls(void);

/* The entries of a directory under /proc/self: "fd" or "task". */
int count_of(const char *directory);
/* Waits until there are no more than that. Not exactly as many: a thread that was joined may stand
 * under /proc a moment longer, and be in a count taken then. */
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
    /* Called with each event when it is recorded; may be NULL. */
    void (*then)(void *handle, const aiot_tunnel_event_t *event);
} recorder_t;

/* An event handler; its userdata is a recorder_t. */
void record(void *handle, const aiot_tunnel_event_t *event, void *userdata);
/* The index-th event, as soon as there is one. */
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

/* An instance with the peer's credential, the services _ECHO and _RESET when there is a peer,
 * and a recorder as its handler. */
void device_open(device_t *device);
void device_start(device_t *device);
/* stop, join, deinit */
void device_close(device_t *device);
void *joined(pthread_t thread);

void set_handler(void *handle, aiot_tunnel_event_handler_t handler);
void set_peer_credential(void *handle);
int32_t add_service(void *handle, const char *type, const char *ip, unsigned int port);

/* add and update towards the peer; `scene` is the query of the path. */
int32_t add(device_t *device, const char *id, const char *scene);
int32_t update(device_t *device, const char *id, const char *scene);
int32_t connect_tunnel(int32_t (*call)(void *, char *, aiot_tunnel_connect_param_t *),
                       void *handle, const char *id, const char *scene, const char *token);

#endif
