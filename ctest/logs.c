/* The log callback: content, order and form of every line, and no line after it was removed. */
#include "harness.h"

#include <regex.h>

#define MOST_LINES 512

/* Log lines without their "[time]", and events, in the order of their arrival. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static char lines[MOST_LINES][512];
static int line_count;

static void note(const char *line)
{
    pthread_mutex_lock(&lock);
    CHECK(line_count < MOST_LINES);
    snprintf(lines[line_count++], sizeof(lines[0]), "%s", line);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static int noted(void)
{
    int count;

    pthread_mutex_lock(&lock);
    count = line_count;
    pthread_mutex_unlock(&lock);
    return count;
}

static void forget_lines(void)
{
    pthread_mutex_lock(&lock);
    line_count = 0;
    pthread_mutex_unlock(&lock);
}

/* Waits until the line is at position `from` or later. */
static void wait_for_line(int from, const char *line)
{
    struct timespec deadline;
    int i = from;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += TIMEOUT_MS / 1000;
    pthread_mutex_lock(&lock);
    for (;;) {
        for (; i < line_count; i++) {
            if (strcmp(lines[i], line) == 0) {
                pthread_mutex_unlock(&lock);
                return;
            }
        }
        CHECK(pthread_cond_timedwait(&changed, &lock, &deadline) == 0);
    }
}

static int matches(const char *text, const char *pattern)
{
    regex_t regex;
    int found;

    CHECK(regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB) == 0);
    found = regexec(&regex, text, 0, NULL, 0) == 0;
    regfree(&regex);
    return found;
}

static int32_t log_line(int32_t code, char *message)
{
    static int running;
    char prefix[32];
    size_t length = strlen(message);

    CHECK(__sync_fetch_and_add(&running, 1) == 0); /* only one call at a time */
    CHECK(matches(message, "^\\[[0-9]{10,}\\.[0-9]{3}\\]\\[LK-[0-9A-F]{4}\\] [^\r\n]*\r\n$"));
    snprintf(prefix, sizeof(prefix), "][LK-%04X] ", (unsigned int)-code);
    CHECK(strstr(message, prefix) != NULL);
    CHECK(strstr(message, getenv("PEER_TOKEN")) == NULL);
    message[length - 2] = '\0';
    note(strchr(message, ']') + 1);
    memset(message, 'x', length); /* the callback may write to the text until it returns */
    CHECK(__sync_fetch_and_sub(&running, 1) == 1);
    return 0;
}

static void note_event(void *handle, const aiot_tunnel_event_t *event, void *userdata)
{
    static const char *const names[] = {"CONNECT", "DISCONNECT", "EXPIRED"};
    char line[256];

    (void)handle;
    (void)userdata;
    snprintf(line, sizeof(line), "%s %s", names[event->type], event->tunnel_id);
    note(line);
}

/* Compares the lines from `next` on; returns the position after them. */
static int check_lines(int next, const char *const *patterns)
{
    pthread_mutex_lock(&lock);
    for (; *patterns != NULL; patterns++, next++) {
        if (next >= line_count || !matches(lines[next], *patterns)) {
            fprintf(stderr, "line %d is \"%s\", not %s\n", next,
                    next < line_count ? lines[next] : "(none)", *patterns);
            exit(1);
        }
    }
    pthread_mutex_unlock(&lock);
    return next;
}

static int check_connect_lines(int next)
{
    static const char *const tcp[] = {
        "^\\[LK-1C80\\] start to create cloud channel$",
        "^\\[LK-1C80\\] connect remote service host 127\\.0\\.0\\.1, port [0-9]+$",
        "^\\[LK-1000\\] success to establish tcp, fd=[0-9]+$",
        "^\\[LK-1000\\] local port: [0-9]+$",
        NULL,
    };
    static const char *const tls[] = {
        "^\\[LK-1000\\] establish tls connection with server\\(host='127\\.0\\.0\\.1', "
        "port=\\[[0-9]+\\]\\)$",
        "^\\[LK-1000\\] success to establish tls connection$",
        NULL,
    };
    static const char *const open[] = {
        "^\\[LK-0F10\\] open_cloud_proxy_channel success$",
        "^\\[LK-1C80\\] websocket t1 opened$",
        "^CONNECT t1$",
        NULL,
    };

    next = check_lines(next, tcp);
    if (peer_has_tls()) {
        next = check_lines(next, tls);
    }
    return check_lines(next, open);
}

static void connect_update_and_stop_log_what_operators_look_for(void)
{
    static const char *const begin[] = {"^\\[LK-1C80\\] remote proxy thread start!$", NULL};
    static const char *const close[] = {
        "^DISCONNECT t1$",
        "^\\[LK-1C80\\] end the cloud channel\\.$",
        "^\\[LK-1C80\\] close cloud channel!$",
        "^\\[LK-1C80\\] websocket t1 closed$",
        "^\\[LK-1000\\] adapter_network_deinit$",
        NULL,
    };
    static const char *const end[] = {"^\\[LK-1C80\\] remote proxy thread exit!$", NULL};
    device_t device;
    int next;

    device_open(&device);
    set_handler(device.handle, note_event);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    wait_for_line(0, "CONNECT t1");
    next = check_connect_lines(check_lines(0, begin));
    CHECK(next == noted());
    CHECK_CODE(update(&device, "t1", "idle&again"), STATE_SUCCESS);
    wait_for_line(next, "CONNECT t1");
    next = check_connect_lines(check_lines(next, close));
    device_close(&device);
    next = check_lines(check_lines(next, close), end);
    CHECK(next == noted());
}

static void faulty_commands_log_what_they_are_about(void)
{
    device_t device;

    forget_lines();
    device_open(&device);
    device_start(&device);
    CHECK_CODE(aiot_tunnel_delete(device.handle, (char[]){"nobody"}), STATE_SUCCESS);
    wait_for_line(0, "[LK-1C80] close tunnel_id nobody not found!");
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    wait_for_line(0, "[LK-1C80] reopen tunnel_id t1 !");
    wait_for_line(0, "[LK-1C80] websocket t1 opened");
    device_close(&device);
}

static void without_an_event_handler_nothing_happens(void)
{
    device_t device;

    forget_lines();
    device.handle = aiot_tunnel_init();
    set_peer_credential(device.handle);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "close&code=4001"), STATE_SUCCESS);
    wait_for_line(0, "[LK-1C80] websocket t1 closed");
    device_close(&device);
}

static void without_a_callback_there_are_no_lines(void)
{
    device_t device;

    CHECK_CODE(aiot_state_set_logcb(NULL), STATE_SUCCESS);
    forget_lines();
    device_open(&device);
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "idle"), STATE_SUCCESS);
    CHECK_EVENT(&device.events, 0, AIOT_TUNNEL_EVT_CONNECT, "t1");
    device_close(&device);
    CHECK(noted() == 0);
    CHECK_CODE(aiot_tunnel_set_logcb(log_line), STATE_SUCCESS);
}

static void *handle_to_end;

static int32_t end_from_inside(int32_t code, char *message)
{
    (void)code;
    if (strstr(message, "websocket t1 opened") != NULL) {
        CHECK_CODE(aiot_tunnel_deinit(&handle_to_end), STATE_SUCCESS);
        CHECK_CODE(aiot_tunnel_set_logcb(NULL), STATE_SUCCESS);
        note("taken off");
    }
    return 0;
}

static void a_callback_may_call_every_function(void)
{
    device_t device;

    forget_lines();
    CHECK_CODE(aiot_tunnel_set_logcb(end_from_inside), STATE_SUCCESS);
    device_open(&device);
    handle_to_end = device.handle;
    device_start(&device);
    CHECK_CODE(add(&device, "t1", "any"), STATE_SUCCESS);
    CHECK(joined(device.thread) == NULL);
    wait_for_line(0, "taken off");
    CHECK(handle_to_end == NULL);
    CHECK(recorded_count(&device.events) == 0);
}

int main(void)
{
    CHECK_CODE(aiot_state_set_logcb(log_line), STATE_SUCCESS);
    RUN(connect_update_and_stop_log_what_operators_look_for);
    RUN(faulty_commands_log_what_they_are_about);
    RUN(without_an_event_handler_nothing_happens);
    RUN(without_a_callback_there_are_no_lines);
    RUN(a_callback_may_call_every_function);
    return 0;
}
