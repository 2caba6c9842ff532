/*
 * The business process's half, for a firmware that has its own MQTT client: tells the remote-login
 * process over its System V message queue which tunnel to open or close. It needs no library. The
 * token comes on standard input, because every user can see a command line.
 *
 *     business_process KEY add|update TUNNEL_ID HOST PORT PATH <token
 *     business_process KEY delete TUNNEL_ID
 *
 * In the platform's message, the operation "connect" is add here, none is update, "close" is delete.
 */
#define _GNU_SOURCE

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/msg.h>

#define MESSAGE_TYPE 1

typedef struct {
    long type;
    struct {
        int32_t operation; /* 1 add, 0 delete, 2 update */
        /* Tunnel id, host, port in decimal digits, path, token: each NUL-terminated. */
        char text[5][128];
    } body; /* 644 bytes */
} message_t;

/* Copies a text, its NUL included; -1 when it does not fit. */
static int put(char *field, const char *text)
{
    size_t size = strlen(text) + 1;

    if (size > 128) {
        fprintf(stderr, "a text has more than 127 bytes\n");
        return -1;
    }
    memcpy(field, text, size);
    return 0;
}

int main(int argc, char **argv)
{
    static const char *const operations[] = {"delete", "add", "update"};
    message_t message;
    char token[256] = "";
    int operation = 0, i, queue, result = -1;

    while (argc > 2 && operation < 3 && strcmp(argv[2], operations[operation]) != 0) {
        operation++;
    }
    if (argc != (operation == 0 ? 4 : 7) || operation > 2) {
        fprintf(stderr, "usage: %s KEY add|update TUNNEL_ID HOST PORT PATH <token\n"
                        "       %s KEY delete TUNNEL_ID\n", argv[0], argv[0]);
        return 2;
    }
    memset(&message, 0, sizeof(message));
    message.type = MESSAGE_TYPE;
    message.body.operation = operation;
    if (operation != 0 && fgets(token, sizeof(token), stdin) != NULL) {
        token[strcspn(token, "\r\n")] = '\0';
    }
    for (i = 3; i < argc && put(message.body.text[i - 3], argv[i]) == 0; i++) {
    }
    /* The remote-login process has made the queue. Without IPC_NOWAIT, a full one would block. */
    if (i == argc && put(message.body.text[4], token) == 0) {
        queue = msgget((key_t)strtol(argv[1], NULL, 0), 0);
        result = queue < 0 ? -1 : msgsnd(queue, &message, sizeof(message.body), IPC_NOWAIT);
        if (result != 0) {
            perror("message queue");
        }
    }
    /* The token is no longer needed. */
    explicit_bzero(&message, sizeof(message));
    explicit_bzero(token, sizeof(token));
    return result == 0 ? 0 : 1;
}
